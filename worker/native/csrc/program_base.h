// What program.cc asks of a program, whatever the type of its weights.
#pragma once

#include "gemm.h"
#include "model.h"

namespace shoal {

// Rows of the residual stream whose logits are wanted; indices null: the first ones.
struct Selection {
  const int64_t* indices;
  int num_rows;
  Rows<float> out;
  int64_t* largest = nullptr;  // if not null: only each row's greatest of num_columns, not `out`
  int num_columns = 0;
};

// Used by one thread at a time; x: [T, stride], the residual stream of the step begun last.
class ProgramBase {
 public:
  virtual ~ProgramBase() = default;
  virtual void set_caches(const LayerCache* caches) = 0;
  virtual void begin_step(const StepTerms& step) = 0;
  virtual void look_up(Rows<float> x) = 0;
  virtual void finish_embedding(Rows<float> x) = 0;
  virtual void run_layers(int first, int last, Rows<float> x) = 0;
  virtual void attention_part(int layer, Rows<float> x, Rows<float> y) = 0;
  virtual void mlp_part(int layer, Rows<float> x, Rows<float> y) = 0;
  virtual void add_part(int layer, bool is_attention, Rows<float> x, Rows<float> y) = 0;
  virtual void logits(Rows<float> x, const Selection& selection) = 0;
  // Embedding, all layers and the logits of some rows.
  virtual void run_step(Rows<float> x, const Selection& selection) = 0;
};

}  // namespace shoal
