// What Python calls of the whole program: teams and the parts of a step. Packing is pack.cc's.
#include "program.h"

#include <new>

#include "abi.h"

using namespace shoal;

namespace {

Rows<float> rows(float* data, int stride) { return {data, stride}; }

}  // namespace

// Bytes of a structure as compiled here, for Python to compare with its own.
SHOAL_API int shoal_struct_bytes(int which) {
  constexpr int kBytes[] = {sizeof(ModelTerms), sizeof(LayerTerms), sizeof(MoETerms),
                            sizeof(KindTerms),  sizeof(StepTerms),  sizeof(LayerCache),
                            sizeof(LayerAttention), sizeof(GroupTerms)};
  return kBytes[which];
}

// Null when threads or memory cannot be had.
SHOAL_API void* shoal_team_create(int size) {
  try {
    return new Team(size);
  } catch (const std::exception&) {
    return nullptr;
  }
}

SHOAL_API void shoal_team_destroy(void* team) { delete static_cast<Team*>(team); }

// The team must outlive the program. Null when memory cannot be had.
SHOAL_API void* shoal_program_create(const ModelTerms* model, void* team) {
  Team& members = *static_cast<Team*>(team);
  try {
    ProgramBase* program = nullptr;
    if (model->dtype == kBFloat16) {
      program = new Program<bf16>(*model, members);
    } else {
      program = new Program<float>(*model, members);
    }
    return program;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

SHOAL_API void shoal_program_destroy(void* program) { delete static_cast<ProgramBase*>(program); }

SHOAL_API void shoal_set_caches(void* program, const LayerCache* caches) {
  static_cast<ProgramBase*>(program)->set_caches(caches);
}

// Whether there was memory for the step.
SHOAL_API int shoal_begin_step(void* program, const StepTerms* step) {
  try {
    static_cast<ProgramBase*>(program)->begin_step(*step);
    return 1;
  } catch (const std::bad_alloc&) {
    return 0;
  }
}

// This rank's rows of the embedding; x: [T, stride] fp32.
SHOAL_API void shoal_look_up(void* program, float* x, int stride) {
  static_cast<ProgramBase*>(program)->look_up(rows(x, stride));
}

// What is done to the sum of all ranks' rows.
SHOAL_API void shoal_finish_embedding(void* program, float* x, int stride) {
  static_cast<ProgramBase*>(program)->finish_embedding(rows(x, stride));
}

// Layers first .. last - 1, in place.
SHOAL_API void shoal_run_layers(void* program, int first, int last, float* x, int stride) {
  static_cast<ProgramBase*>(program)->run_layers(first, last, rows(x, stride));
}

// This rank's part of a layer's attention or MLP, to y, which has x's stride.
SHOAL_API void shoal_attention_part(void* program, int layer, float* x, float* y, int stride) {
  static_cast<ProgramBase*>(program)->attention_part(layer, rows(x, stride), rows(y, stride));
}
SHOAL_API void shoal_mlp_part(void* program, int layer, float* x, float* y, int stride) {
  static_cast<ProgramBase*>(program)->mlp_part(layer, rows(x, stride), rows(y, stride));
}

// Adds the sum over ranks of such parts to x, normed as the layer says. May write to y.
SHOAL_API void shoal_add_part(void* program, int layer, int is_attention, float* x, float* y,
                              int stride) {
  static_cast<ProgramBase*>(program)->add_part(layer, is_attention != 0, rows(x, stride),
                                               rows(y, stride));
}

// x: [.., stride]; indices: its rows that are wanted, or null: the first; out: [num_rows,
// out_stride], this rank's logits.
SHOAL_API void shoal_logits(void* program, float* x, int stride, const int64_t* indices,
                            int num_rows, float* out, int out_stride) {
  static_cast<ProgramBase*>(program)->logits(rows(x, stride),
                                             {indices, num_rows, rows(out, out_stride)});
}

// A whole step of one rank: embedding, layers, and logits as above.
SHOAL_API void shoal_run_step(void* program, float* x, int stride, const int64_t* indices,
                              int num_rows, float* out, int out_stride) {
  static_cast<ProgramBase*>(program)->run_step(rows(x, stride),
                                               {indices, num_rows, rows(out, out_stride)});
}

// The same, but of the logits only each row's greatest is kept: largest, [num_rows], the first of the
// equal ones among num_columns, which must be fewer than LargestColumns can tell apart.
SHOAL_API void shoal_run_greedy_step(void* program, float* x, int stride, const int64_t* indices,
                                     int num_rows, int64_t* largest, int num_columns) {
  static_cast<ProgramBase*>(program)->run_step(
      rows(x, stride), {indices, num_rows, {}, largest, num_columns});
}
