// Variants: GYRE_KEYS=64,128
// The gradients of linear attention and the delta rules where K and V round to different sizes: K to
// GYRE_KEYS, V to the other of 64 and 128. prepare and walk depend on K alone.
#include "chunk_gradient.cuh"

#define GYRE_VALUES (192 - GYRE_KEYS)
#define GRADIENTS(E, e, K)                                                   \
  ENTRY(linear_attention_gradient_##e##_k##K##_mixed, MixerArgs, 256,        \
        gradient<LINEAR, K, GYRE_VALUES, false, E>(args))                    \
  ENTRY(linear_attention_gradient_scalar_##e##_k##K##_mixed, MixerArgs, 256, \
        gradient<LINEAR, K, GYRE_VALUES, true, E>(args))                     \
  ENTRY(delta_rule_beta_gradient_##e##_k##K##_mixed, MixerArgs, 256,         \
        gradient<BETA, K, GYRE_VALUES, false, E>(args))                      \
  ENTRY(delta_rule_beta_gradient_scalar_##e##_k##K##_mixed, MixerArgs, 256,  \
        gradient<BETA, K, GYRE_VALUES, true, E>(args))                       \
  ENTRY(delta_rule_general_gradient_##e##_k##K##_mixed, MixerArgs, 256,      \
        gradient<GENERAL, K, GYRE_VALUES, false, E>(args))

MIXER_MODULE(GRADIENTS)
