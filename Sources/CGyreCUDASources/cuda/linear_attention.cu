// Variants: GYRE_KEYS=64,128,256
// Linear attention with decay: S ← D S + k vᵀ, y = s Sᵀ q, with D the identity, one factor a head
// or token (RetNet, Mamba-2, simple GLA, mLSTM) or one a key channel (GLA, HGRN2). See
// chunk_common.cuh, chunk_normalizer.cuh for divided outputs and input gates, and LAUNCH.md for grids,
// shared memory and workspaces.
//
// One module a size and element type: -DGYRE_KEYS=64 (default), 128 or 256 is K rounded up;
// -DGYRE_FLOAT takes float32 q, k, v, y and their gradients instead of bf16. 256: one decay for all
// channels only.
#include "chunk_gradient_linear.cuh"
#include "chunk_prepare.cuh"
#include "chunk_walk.cuh"
#if GYRE_KEYS != 256
#include "chunk_gradient.cuh"
#include "chunk_gradient_mild.cuh"
#include "chunk_prepare_mild.cuh"
#endif

#define SCALAR_DECAYS(E, e, K)                                                                     \
  ENTRY_BLOCKS(linear_attention_prepare_scalar_##e##_k##K, MixerArgs, 128, (K == 256 ? 2 : 4),     \
               prepare<LINEAR, K, true, E>(args, blockIdx.x, blockIdx.y))                          \
  ENTRY(linear_attention_walk_team_##e##_k##K, MixerArgs, 256,                                     \
        walk_team<LINEAR, K, 32, false, E>(args))                                                  \
  ENTRY(linear_attention_walk_back_team_##e##_k##K, MixerArgs, 256,                                \
        walk_team<LINEAR, K, 32, true, E>(args))                                                   \
  ENTRY(linear_attention_walk_team_norm_##e##_k##K, MixerArgs, 256,                                \
        walk_team<LINEAR, K, 32, false, E, true>(args))                                            \
  ENTRY(linear_attention_walk_back_team_norm_##e##_k##K, MixerArgs, 256,                           \
        walk_team<LINEAR, K, 32, true, E, true>(args))                                             \
  ENTRY(linear_attention_normalize_back_##e##_k##K, MixerArgs, 512, normalize_back<K, E>(args))    \
  ENTRY(linear_attention_stabilize_##e##_k##K, MixerArgs, 1024, stabilize(args))                   \
  ENTRY_BLOCKS(linear_attention_gradient_scalar_##e##_k##K, MixerArgs, 256, 2,                     \
               linear_gradient<K, E>(args))

MIXER_MODULE(SCALAR_DECAYS)

#if GYRE_KEYS != 256
#define CHANNEL_DECAYS(E, e, K)                                                                    \
  ENTRY_BLOCKS(linear_attention_prepare_##e##_k##K, MixerArgs, 128, 4,                             \
               each_steep(args, [&](int chunk, int row) {                                          \
                 prepare<LINEAR, K, false, E>(args, chunk, row);                                   \
               }))                                                                                 \
  ENTRY_BLOCKS(linear_attention_prepare_mild_##e##_k##K, MixerArgs, 256, 4,                        \
               mild_prepare<LINEAR, K, E>(args))                                                   \
  ENTRY(linear_attention_walk_##e##_k##K, MixerArgs, 128, walk<LINEAR, K, 64, false, E>(args))     \
  ENTRY(linear_attention_walk_back_##e##_k##K, MixerArgs, 128, walk<LINEAR, K, 64, true, E>(args)) \
  ENTRY(linear_attention_walk_norm_##e##_k##K, MixerArgs, 128,                                     \
        walk<LINEAR, K, 64, false, E, true>(args))                                                 \
  ENTRY(linear_attention_walk_back_norm_##e##_k##K, MixerArgs, 128,                                \
        walk<LINEAR, K, 64, true, E, true>(args))                                                  \
  ENTRY_BLOCKS(linear_attention_gradient_##e##_k##K, MixerArgs, 256, (K == 64 ? 2 : 1),            \
               each_gradient<K == 64>(args, [&](int chunk, int row) {                              \
                 gradient<LINEAR, K, K, false, E>(args, chunk, row);                               \
               }))

MIXER_MODULE(CHANNEL_DECAYS)

#define WALK_SEGMENTS(E, e, K, END, BACK)                                                     \
  ENTRY_BLOCKS(linear_attention_walk##END##_states_##e##_k##K, SegmentArgs, 128, 2,           \
               walk<LINEAR, K, 64, BACK, E, false, STATES>(args))                             \
  ENTRY_BLOCKS(linear_attention_walk##END##_segments_##e##_k##K, SegmentArgs, 128, 2,         \
               walk<LINEAR, K, 64, BACK, E, false, SEGMENTS>(args))
#define WALKS_IN_SEGMENTS(E, e, K)    \
  WALK_SEGMENTS(E, e, K, , false)     \
  WALK_SEGMENTS(E, e, K, _back, true)
MIXER_MODULE(WALKS_IN_SEGMENTS)
#endif

#if GYRE_KEYS == 64
#define MILD_GRADIENTS(E, e, K)                                                                    \
  ENTRY_BLOCKS(linear_attention_gradient_mild_##e##_k##K, MixerArgs, 256, 2,                       \
               mild_gradient<LINEAR, E>(args))

MIXER_MODULE(MILD_GRADIENTS)
#endif
