// The delta rule. `beta`: S ← D S, then S ← S + k (β (v − Sᵀ k))ᵀ (DeltaNet, Gated DeltaNet, KDA).
// `general`: S ← D S + b (aᵀ S) + k vᵀ (RWKV-7). y = s Sᵀ q. See chunk_common.cuh.
#include "chunk_prepare.cuh"
#include "chunk_walk.cuh"

#define DELTA_RULE(RULE, rule, E, e, K, VT)                                               \
  ENTRY(delta_rule_##rule##_prepare_##e##_k##K, MixerArgs, 128, prepare<RULE, K, E>(args)) \
  ENTRY(delta_rule_##rule##_walk_##e##_k##K, MixerArgs, 2 * VT,                           \
        walk<RULE, K, VT, false, E>(args))                                                \
  ENTRY(delta_rule_##rule##_walk_back_##e##_k##K, MixerArgs, 2 * VT,                      \
        walk<RULE, K, VT, true, E>(args))

DELTA_RULE(BETA, beta, bf16, bf16, 64, 64)
DELTA_RULE(GENERAL, general, bf16, bf16, 64, 64)
