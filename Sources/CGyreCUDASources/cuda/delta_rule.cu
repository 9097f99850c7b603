// The delta rule. `beta`: S ← D S, then S ← S + k (β (v − Sᵀ k))ᵀ (DeltaNet, Gated DeltaNet, KDA).
// `general`: S ← D S + b (aᵀ S) + k vᵀ (RWKV-7). y = s Sᵀ q. See chunk_common.cuh.
#include "chunk_gradient.cuh"
#include "chunk_prepare.cuh"
#include "chunk_walk.cuh"

// Both rules have the same records, so they share the walk.
#define DELTA_RULE_WALK(E, e, K, VT, suffix)                                             \
  ENTRY(delta_rule_walk_##e##_k##K##suffix, MixerArgs, 2 * VT,                           \
        walk<BETA, K, VT, false, E>(args))                                               \
  ENTRY(delta_rule_walk_back_##e##_k##K##suffix, MixerArgs, 2 * VT,                      \
        walk<BETA, K, VT, true, E>(args))
#define DELTA_RULE(E, e, K)                                                                     \
  ENTRY_BLOCKS(delta_rule_beta_prepare_##e##_k##K, MixerArgs, 128, (K == 64 ? 3 : 2),           \
               prepare<BETA, K, false, E>(args))                                                \
  ENTRY_BLOCKS(delta_rule_beta_prepare_scalar_##e##_k##K, MixerArgs, 128, (K == 64 ? 3 : 2),    \
               prepare<BETA, K, true, E>(args))                                                 \
  ENTRY_BLOCKS(delta_rule_general_prepare_##e##_k##K, MixerArgs, 128, 2, prepare<GENERAL, K, false, E>(args))    \
  DELTA_RULE_WALK(E, e, K, 64, )                                                                \
  DELTA_RULE_TEAM(E, e, K, 64) \
  DELTA_RULE_TEAM(E, e, K, 32)

#define DELTA_RULE_TEAM(E, e, K, VT)                                                 \
  ENTRY(delta_rule_walk_##e##_k##K##_team##VT, MixerArgs, 8 * VT,                   \
        walk_team<BETA, K, VT, false, E>(args))                                      \
  ENTRY(delta_rule_walk_back_##e##_k##K##_team##VT, MixerArgs, 8 * VT,              \
        walk_team<BETA, K, VT, true, E>(args))
#define DELTA_RULE_GRADIENT(E, e, K, V)                                                        \
  ENTRY(delta_rule_beta_gradient_##e##_k##K##_v##V, MixerArgs, 256,                            \
        gradient<BETA, K, V, false, E>(args))                                                  \
  ENTRY_BLOCKS(delta_rule_beta_gradient_scalar_##e##_k##K##_v##V, MixerArgs, 256, (K == 64 ? 2 : 1), \
               gradient<BETA, K, V, true, E>(args))                                            \
  ENTRY(delta_rule_general_gradient_##e##_k##K##_v##V, MixerArgs, 256,                         \
        gradient<GENERAL, K, V, false, E>(args))

DELTA_RULE(bf16, bf16, 64)
DELTA_RULE(bf16, bf16, 128)
DELTA_RULE_GRADIENT(bf16, bf16, 64, 64)
DELTA_RULE_GRADIENT(bf16, bf16, 128, 128)
