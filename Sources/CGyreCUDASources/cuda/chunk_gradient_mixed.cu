// Variants: GYRE_KEYS=64,128
// The gradients of linear attention and the delta rules where K and V round to different sizes: K to
// GYRE_KEYS, V to the other of 64 and 128. prepare and walk depend on K alone.
#include "chunk_gradient.cuh"
#include "chunk_mild.cuh"

#define GYRE_VALUES (192 - GYRE_KEYS)
#define EACH(RULE, E, K)                                          \
  each_gradient<false>(args, [&](int chunk, int row) {            \
    gradient<RULE, K, GYRE_VALUES, false, E>(args, chunk, row);   \
  })
#define GRADIENTS(E, e, K)                                                                       \
  ENTRY(linear_attention_gradient_##e##_k##K##_mixed, MixerArgs, 256, EACH(LINEAR, E, K))        \
  ENTRY(delta_rule_beta_gradient_##e##_k##K##_mixed, MixerArgs, 256, EACH(BETA, E, K))           \
  ENTRY_BLOCKS(delta_rule_beta_gradient_scalar_##e##_k##K##_mixed, MixerArgs, 256, 2,            \
        gradient<BETA, K, GYRE_VALUES, true, E>(args, blockIdx.x, blockIdx.y))                   \
  ENTRY(delta_rule_general_gradient_##e##_k##K##_mixed, MixerArgs, 256, EACH(GENERAL, E, K))

MIXER_MODULE(GRADIENTS)
