// A weight as Python describes it, for the products.
#pragma once

#include "gemm.h"
#include "model.h"

namespace shoal {

template <class W>
Packed<W> packed_as(const MatrixTerms& m) {
  return {m.data, m.bias, m.num_panels, m.depth, static_cast<const PanelCode*>(m.codes),
          static_cast<const Stray*>(m.strays)};
}

}  // namespace shoal
