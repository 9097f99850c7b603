// Linear attention with decay: S ← D S + k vᵀ, y = s Sᵀ q, with D the identity, one factor a head or
// token (RetNet, Mamba-2, simple GLA) or one a key channel (GLA, HGRN2). See chunk_common.cuh.
#include "chunk_gradient.cuh"
#include "chunk_prepare.cuh"
#include "chunk_walk.cuh"

#define LINEAR_ATTENTION_WALK(E, e, K, VT, suffix)                                      \
  ENTRY(linear_attention_walk_##e##_k##K##suffix, MixerArgs, 2 * VT,                    \
        walk<LINEAR, K, VT, false, E>(args))                                            \
  ENTRY(linear_attention_walk_back_##e##_k##K##suffix, MixerArgs, 2 * VT,               \
        walk<LINEAR, K, VT, true, E>(args))
#define LINEAR_ATTENTION(E, e, K)                                                         \
  ENTRY_BLOCKS(linear_attention_prepare_##e##_k##K, MixerArgs, 128, 4,                    \
               prepare<LINEAR, K, false, E>(args))                                        \
  ENTRY_BLOCKS(linear_attention_prepare_scalar_##e##_k##K, MixerArgs, 128, 4,             \
               prepare<LINEAR, K, true, E>(args))                                         \
  LINEAR_ATTENTION_WALK(E, e, K, 64, )                                                    \
  LINEAR_ATTENTION_TEAM(E, e, K, 64) \
  LINEAR_ATTENTION_TEAM(E, e, K, 32)

#define LINEAR_ATTENTION_TEAM(E, e, K, VT)                                                 \
  ENTRY(linear_attention_walk_##e##_k##K##_team##VT, MixerArgs, 8 * VT,                   \
        walk_team<LINEAR, K, VT, false, E>(args))                                      \
  ENTRY(linear_attention_walk_back_##e##_k##K##_team##VT, MixerArgs, 8 * VT,              \
        walk_team<LINEAR, K, VT, true, E>(args))
#define LINEAR_ATTENTION_GRADIENT(E, e, K, V)                                                  \
  ENTRY(linear_attention_gradient_##e##_k##K##_v##V, MixerArgs, 256,                           \
        gradient<LINEAR, K, V, false, E>(args))                                                \
  ENTRY_BLOCKS(linear_attention_gradient_scalar_##e##_k##K##_v##V, MixerArgs, 256, (K == 64 ? 2 : 1), \
               gradient<LINEAR, K, V, true, E>(args))

LINEAR_ATTENTION(bf16, bf16, 64)
LINEAR_ATTENTION(bf16, bf16, 128)
LINEAR_ATTENTION_GRADIENT(bf16, bf16, 64, 64)
LINEAR_ATTENTION_GRADIENT(bf16, bf16, 128, 128)
