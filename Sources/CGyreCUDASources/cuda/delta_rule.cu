// Variants: GYRE_KEYS=64,128
// The delta rule. `beta`: S ← D S, then S ← S + k (β (v − Sᵀ k))ᵀ (DeltaNet, Gated DeltaNet, KDA).
// `general`: S ← D S + b (aᵀ S) + k vᵀ (RWKV-7). y = s Sᵀ q. See chunk_common.cuh, and LAUNCH.md
// for grids, shared memory and workspaces.
//
// One module a size and element type, as linear_attention.cu.
#include "chunk_gradient.cuh"
#include "chunk_gradient_mild.cuh"
#include "chunk_prepare.cuh"
#include "chunk_prepare_mild.cuh"
#include "chunk_walk.cuh"

#define WALKS(RULE, rule, E, e, K)                                                                \
  ENTRY(delta_rule_##rule##_walk_##e##_k##K, MixerArgs, 128, walk<RULE, K, 64, false, E>(args))   \
  ENTRY(delta_rule_##rule##_walk_back_##e##_k##K, MixerArgs, 128,                                 \
        walk<RULE, K, 64, true, E>(args))                                                         \
  ENTRY(delta_rule_##rule##_walk_team_##e##_k##K, MixerArgs, 256,                                 \
        walk_team<RULE, K, 32, false, E>(args))                                                   \
  ENTRY(delta_rule_##rule##_walk_back_team_##e##_k##K, MixerArgs, 256,                            \
        walk_team<RULE, K, 32, true, E>(args))

#define DELTA_RULE(E, e, K)                                                                       \
  ENTRY_BLOCKS(delta_rule_beta_prepare_##e##_k##K, MixerArgs, 128, (K == 64 ? 3 : 2),             \
               each_steep(args, [&](int chunk, int row) {                                         \
                 prepare<BETA, K, false, E>(args, chunk, row);                                    \
               }))                                                                                \
  ENTRY_BLOCKS(delta_rule_beta_prepare_mild_##e##_k##K, MixerArgs, 256, (K == 64 ? 4 : 3),        \
               mild_prepare<BETA, K, E>(args))                                                    \
  ENTRY_BLOCKS(delta_rule_beta_prepare_scalar_##e##_k##K, MixerArgs, 128, (K == 64 ? 5 : 4),      \
               prepare<BETA, K, true, E>(args, blockIdx.x, blockIdx.y))                           \
  ENTRY_BLOCKS(delta_rule_general_prepare_##e##_k##K, MixerArgs, 128, 2,                          \
               each_steep(args, [&](int chunk, int row) {                                         \
                 prepare<GENERAL, K, false, E>(args, chunk, row);                                 \
               }))                                                                                \
  ENTRY_BLOCKS(delta_rule_general_prepare_mild_##e##_k##K, MixerArgs, 256, (K == 64 ? 3 : 2),     \
               mild_prepare<GENERAL, K, E>(args))                                                 \
  WALKS(BETA, beta, E, e, K)                                                                      \
  WALKS(GENERAL, general, E, e, K)                                                                \
  ENTRY_BLOCKS(delta_rule_beta_gradient_##e##_k##K, MixerArgs, 256, (K == 64 ? 2 : 1),            \
               each_gradient<K == 64>(args, [&](int chunk, int row) {                             \
                 gradient<BETA, K, K, false, E>(args, chunk, row);                                \
               }))                                                                                \
  ENTRY_BLOCKS(delta_rule_beta_gradient_scalar_##e##_k##K, MixerArgs, 256, (K == 64 ? 3 : 2),                     \
               gradient<BETA, K, K, true, E>(args, blockIdx.x, blockIdx.y))                       \
  ENTRY(delta_rule_general_gradient_##e##_k##K, MixerArgs, 256,                                   \
        each_gradient<K == 64>(args, [&](int chunk, int row) {                                    \
          gradient<GENERAL, K, K, false, E>(args, chunk, row);                                    \
        }))

MIXER_MODULE(DELTA_RULE)

#if GYRE_KEYS == 64
#define MILD_GRADIENTS(E, e, K)                                                                   \
  ENTRY_BLOCKS(delta_rule_beta_gradient_mild_##e##_k##K, MixerArgs, 256, 2,                       \
               mild_gradient<BETA, E>(args))                                                      \
  ENTRY_BLOCKS(delta_rule_general_gradient_mild_##e##_k##K, MixerArgs, 256, 2,                    \
               mild_gradient<GENERAL, E>(args))

MIXER_MODULE(MILD_GRADIENTS)
#endif
