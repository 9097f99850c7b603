#include "gyre_cuda_sources.h"

#include <stddef.h>

// #embed cannot be made by a macro: three lines a file.
static const char pointwise_cu[] = {
#embed "cuda/pointwise.cu" suffix(, 0)
};
static const char unary_cu[] = {
#embed "cuda/unary.cu" suffix(, 0)
};
static const char gemv_cu[] = {
#embed "cuda/gemv.cu" suffix(, 0)
};
static const char blocks_cu[] = {
#embed "cuda/blocks.cu" suffix(, 0)
};
static const char layout_cu[] = {
#embed "cuda/layout.cu" suffix(, 0)
};
static const char reduce_cu[] = {
#embed "cuda/reduce.cu" suffix(, 0)
};
static const char norm_cu[] = {
#embed "cuda/norm.cu" suffix(, 0)
};
static const char norm_rows_cu[] = {
#embed "cuda/norm_rows.cu" suffix(, 0)
};
static const char loss_cu[] = {
#embed "cuda/loss.cu" suffix(, 0)
};
static const char optimizer_cu[] = {
#embed "cuda/optimizer.cu" suffix(, 0)
};
static const char convolution_cu[] = {
#embed "cuda/convolution.cu" suffix(, 0)
};
static const char rwkv7_cu[] = {
#embed "cuda/rwkv7.cu" suffix(, 0)
};
static const char bonus_cu[] = {
#embed "cuda/bonus.cu" suffix(, 0)
};
static const char blend_cu[] = {
#embed "cuda/blend.cu" suffix(, 0)
};
static const char attention_step_cu[] = {
#embed "cuda/attention_step.cu" suffix(, 0)
};
static const char value_scales_cu[] = {
#embed "cuda/value_scales.cu" suffix(, 0)
};
static const char step_gates_cu[] = {
#embed "cuda/step_gates.cu" suffix(, 0)
};
static const char normed_mixes_cu[] = {
#embed "cuda/normed_mixes.cu" suffix(, 0)
};
static const char token_mixes_cu[] = {
#embed "cuda/token_mixes.cu" suffix(, 0)
};
static const char sequence_cu[] = {
#embed "cuda/sequence.cu" suffix(, 0)
};
static const char diagonal_scan_base_cu[] = {
#embed "cuda/diagonal_scan_base.cu" suffix(, 0)
};
static const char min_gru_cu[] = {
#embed "cuda/min_gru.cu" suffix(, 0)
};
static const char complex_scan_cu[] = {
#embed "cuda/complex_scan.cu" suffix(, 0)
};
static const char selective_scan_cu[] = {
#embed "cuda/selective_scan.cu" suffix(, 0)
};
static const char attention_cu[] = {
#embed "cuda/attention.cu" suffix(, 0)
};
static const char attention_mma_cu[] = {
#embed "cuda/attention_mma.cu" suffix(, 0)
};
static const char attention_tiles_cu[] = {
#embed "cuda/attention_tiles.cu" suffix(, 0)
};
static const char attention_tiles_gradient_cu[] = {
#embed "cuda/attention_tiles_gradient.cu" suffix(, 0)
};
static const char linear_attention_base_cu[] = {
#embed "cuda/linear_attention_base.cu" suffix(, 0)
};
static const char delta_rule_base_cu[] = {
#embed "cuda/delta_rule_base.cu" suffix(, 0)
};
static const char head_step_cu[] = {
#embed "cuda/head_step.cu" suffix(, 0)
};
static const char head_sums_cu[] = {
#embed "cuda/head_sums.cu" suffix(, 0)
};
static const char cell_scan_base_cu[] = {
#embed "cuda/cell_scan_base.cu" suffix(, 0)
};
static const char cell_team_cu[] = {
#embed "cuda/cell_team.cu" suffix(, 0)
};
static const char cell_team_gradient_cu[] = {
#embed "cuda/cell_team_gradient.cu" suffix(, 0)
};
static const char channel_scans_cu[] = {
#embed "cuda/channel_scans.cu" suffix(, 0)
};
static const char block_scan_cu[] = {
#embed "cuda/block_scan.cu" suffix(, 0)
};
static const char block_scan_large_cu[] = {
#embed "cuda/block_scan_large.cu" suffix(, 0)
};
static const char mesa_cu[] = {
#embed "cuda/mesa.cu" suffix(, 0)
};
static const char mesa_solve_cu[] = {
#embed "cuda/mesa_solve.cu" suffix(, 0)
};
static const char mesa_half_cu[] = {
#embed "cuda/mesa_half.cu" suffix(, 0)
};
static const char memory_order_cu[] = {
#embed "cuda/memory_order.cu" suffix(, 0)
};
static const char selection_cu[] = {
#embed "cuda/selection.cu" suffix(, 0)
};
static const char diagonal_scan_cu[] = {
#embed "cuda/diagonal_scan.cu" suffix(, 0)
};
static const char delta_rule_prepare_tiles_cu[] = {
#embed "cuda/delta_rule_prepare_tiles.cu" suffix(, 0)
};
static const char delta_rule_tiles_cu[] = {
#embed "cuda/delta_rule_tiles.cu" suffix(, 0)
};
static const char delta_rule_tiles_back_cu[] = {
#embed "cuda/delta_rule_tiles_back.cu" suffix(, 0)
};
static const char linear_attention_tiles_cu[] = {
#embed "cuda/linear_attention_tiles.cu" suffix(, 0)
};
static const char linear_attention_cu[] = {
#embed "cuda/linear_attention.cu" suffix(, 0)
};
static const char delta_rule_cu[] = {
#embed "cuda/delta_rule.cu" suffix(, 0)
};
static const char chunk_gradient_mixed_cu[] = {
#embed "cuda/chunk_gradient_mixed.cu" suffix(, 0)
};
static const char delta_rule_gradient_tiles_cu[] = {
#embed "cuda/delta_rule_gradient_tiles.cu" suffix(, 0)
};
static const char evolution_cu[] = {
#embed "cuda/evolution.cu" suffix(, 0)
};
static const char low_rank_noise_cu[] = {
#embed "cuda/low_rank_noise.cu" suffix(, 0)
};
static const char member_linear_cu[] = {
#embed "cuda/member_linear.cu" suffix(, 0)
};
static const char row_products_cu[] = {
#embed "cuda/row_products.cu" suffix(, 0)
};
static const char member_product_cu[] = {
#embed "cuda/member_product.cu" suffix(, 0)
};
static const char egg_streams_cu[] = {
#embed "cuda/egg_streams.cu" suffix(, 0)
};
static const char egg_forward_cu[] = {
#embed "cuda/egg_forward.cu" suffix(, 0)
};
static const char egg_update_cu[] = {
#embed "cuda/egg_update.cu" suffix(, 0)
};
static const char token_step_cu[] = {
#embed "cuda/token_step.cu" suffix(, 0)
};
static const char token_sample_cu[] = {
#embed "cuda/token_sample.cu" suffix(, 0)
};

static const char prelude_cuh[] = {
#embed "cuda/prelude.cuh" suffix(, 0)
};
static const char four_cuh[] = {
#embed "cuda/four.cuh" suffix(, 0)
};
static const char functions_cuh[] = {
#embed "cuda/functions.cuh" suffix(, 0)
};
static const char scan_cuh[] = {
#embed "cuda/scan.cuh" suffix(, 0)
};
static const char head_cuh[] = {
#embed "cuda/head.cuh" suffix(, 0)
};
static const char mma_cuh[] = {
#embed "cuda/mma.cuh" suffix(, 0)
};
static const char cell_team_cuh[] = {
#embed "cuda/cell_team.cuh" suffix(, 0)
};
static const char cell_code_cuh[] = {
#embed "cuda/cell_code.cuh" suffix(, 0)
};
static const char cell_products_cuh[] = {
#embed "cuda/cell_products.cuh" suffix(, 0)
};
static const char cell_units_cuh[] = {
#embed "cuda/cell_units.cuh" suffix(, 0)
};
static const char cell_newton_cuh[] = {
#embed "cuda/cell_newton.cuh" suffix(, 0)
};
static const char cell_rows_cuh[] = {
#embed "cuda/cell_rows.cuh" suffix(, 0)
};
static const char chunk_common_cuh[] = {
#embed "cuda/chunk_common.cuh" suffix(, 0)
};
static const char chunk_prepare_cuh[] = {
#embed "cuda/chunk_prepare.cuh" suffix(, 0)
};
static const char chunk_normalizer_cuh[] = {
#embed "cuda/chunk_normalizer.cuh" suffix(, 0)
};
static const char chunk_mild_cuh[] = {
#embed "cuda/chunk_mild.cuh" suffix(, 0)
};
static const char chunk_gradient_mild_cuh[] = {
#embed "cuda/chunk_gradient_mild.cuh" suffix(, 0)
};
static const char chunk_prepare_mild_cuh[] = {
#embed "cuda/chunk_prepare_mild.cuh" suffix(, 0)
};
static const char chunk_walk_cuh[] = {
#embed "cuda/chunk_walk.cuh" suffix(, 0)
};
static const char chunk_gradient_cuh[] = {
#embed "cuda/chunk_gradient.cuh" suffix(, 0)
};
static const char chunk_gradient_linear_cuh[] = {
#embed "cuda/chunk_gradient_linear.cuh" suffix(, 0)
};
static const char chunk_gradient_layout_cuh[] = {
#embed "cuda/chunk_gradient_layout.cuh" suffix(, 0)
};
static const char chunk_gradient_levels_cuh[] = {
#embed "cuda/chunk_gradient_levels.cuh" suffix(, 0)
};
static const char chunk_gradient_scalar_cuh[] = {
#embed "cuda/chunk_gradient_scalar.cuh" suffix(, 0)
};
static const char chunk_solve_cuh[] = {
#embed "cuda/chunk_solve.cuh" suffix(, 0)
};
static const char checked_cuh[] = {
#embed "cuda/checked.cuh" suffix(, 0)
};
static const char wgmma_cuh[] = {
#embed "cuda/wgmma.cuh" suffix(, 0)
};
static const char delta_tiles_cuh[] = {
#embed "cuda/delta_tiles.cuh" suffix(, 0)
};
static const char attention_tiles_cuh[] = {
#embed "cuda/attention_tiles.cuh" suffix(, 0)
};
static const char token_machine_cuh[] = {
#embed "cuda/token_machine.cuh" suffix(, 0)
};
static const char token_stream_cuh[] = {
#embed "cuda/token_stream.cuh" suffix(, 0)
};
static const char token_pairs_cuh[] = {
#embed "cuda/token_pairs.cuh" suffix(, 0)
};
static const char token_norm_cuh[] = {
#embed "cuda/token_norm.cuh" suffix(, 0)
};
static const char token_operand_cuh[] = {
#embed "cuda/token_operand.cuh" suffix(, 0)
};
static const char token_matrix_cuh[] = {
#embed "cuda/token_matrix.cuh" suffix(, 0)
};
static const char token_attention_cuh[] = {
#embed "cuda/token_attention.cuh" suffix(, 0)
};
static const char args_h[] = {
#embed "include/gyre_cuda_args.h" suffix(, 0)
};
static const char engine_args_h[] = {
#embed "include/gyre_cuda_engine_args.h" suffix(, 0)
};
static const char philox_cuh[] = {
#embed "cuda/philox.cuh" suffix(, 0)
};
static const char evolution_numbers_cuh[] = {
#embed "cuda/evolution_numbers.cuh" suffix(, 0)
};
static const char egg_cuh[] = {
#embed "cuda/egg.cuh" suffix(, 0)
};
static const char egg_numbers_cuh[] = {
#embed "cuda/egg_numbers.cuh" suffix(, 0)
};
static const char egg_products_cuh[] = {
#embed "cuda/egg_products.cuh" suffix(, 0)
};
static const char egg_pipeline_cuh[] = {
#embed "cuda/egg_pipeline.cuh" suffix(, 0)
};
static const char egg_args_h[] = {
#embed "include/gyre_cuda_egg_args.h" suffix(, 0)
};
static const char token_args_h[] = {
#embed "include/gyre_cuda_token_args.h" suffix(, 0)
};

static const gyre_cuda_source kernels[] = {
    {"pointwise", pointwise_cu},
    {"unary", unary_cu},
    {"gemv", gemv_cu},
    {"blocks", blocks_cu},
    {"layout", layout_cu},
    {"reduce", reduce_cu},
    {"norm", norm_cu},
    {"norm_rows", norm_rows_cu},
    {"loss", loss_cu},
    {"optimizer", optimizer_cu},
    {"convolution", convolution_cu},
    {"rwkv7", rwkv7_cu},
    {"bonus", bonus_cu},
    {"blend", blend_cu},
    {"value_scales", value_scales_cu},
    {"attention_step", attention_step_cu},
    {"step_gates", step_gates_cu},
    {"normed_mixes", normed_mixes_cu},
    {"token_mixes", token_mixes_cu},
    {"sequence", sequence_cu},
    {"diagonal_scan_base", diagonal_scan_base_cu},
    {"min_gru", min_gru_cu},
    {"complex_scan", complex_scan_cu},
    {"selective_scan", selective_scan_cu},
    {"attention", attention_cu},
    {"attention_mma", attention_mma_cu},
    {"attention_tiles", attention_tiles_cu},
    {"attention_tiles_gradient", attention_tiles_gradient_cu},
    {"linear_attention_base", linear_attention_base_cu},
    {"delta_rule_base", delta_rule_base_cu},
    {"head_step", head_step_cu},
    {"head_sums", head_sums_cu},
    {"cell_scan_base", cell_scan_base_cu},
    {"cell_team", cell_team_cu},
    {"cell_team_gradient", cell_team_gradient_cu},
    {"channel_scans", channel_scans_cu},
    {"block_scan", block_scan_cu},
    {"block_scan_large", block_scan_large_cu},
    {"mesa", mesa_cu},
    {"mesa_solve", mesa_solve_cu},
    {"mesa_half", mesa_half_cu},
    {"memory_order", memory_order_cu},
    {"selection", selection_cu},
    {"diagonal_scan", diagonal_scan_cu},
    {"linear_attention", linear_attention_cu},
    {"linear_attention_tiles", linear_attention_tiles_cu},
    {"delta_rule", delta_rule_cu},
    {"delta_rule_prepare_tiles", delta_rule_prepare_tiles_cu},
    {"delta_rule_tiles", delta_rule_tiles_cu},
    {"delta_rule_tiles_back", delta_rule_tiles_back_cu},
    {"chunk_gradient_mixed", chunk_gradient_mixed_cu},
    {"delta_rule_gradient_tiles", delta_rule_gradient_tiles_cu},
    {"evolution", evolution_cu},
    {"low_rank_noise", low_rank_noise_cu},
    {"member_linear", member_linear_cu},
    {"row_products", row_products_cu},
    {"member_product", member_product_cu},
    {"egg_streams", egg_streams_cu},
    {"egg_forward", egg_forward_cu},
    {"egg_update", egg_update_cu},
    {"token_step", token_step_cu},
    {"token_sample", token_sample_cu},
    {NULL, NULL},
};

static const gyre_cuda_source headers[] = {
    {"prelude.cuh", prelude_cuh},
    {"four.cuh", four_cuh},
    {"functions.cuh", functions_cuh},
    {"scan.cuh", scan_cuh},
    {"head.cuh", head_cuh},
    {"mma.cuh", mma_cuh},
    {"checked.cuh", checked_cuh},
    {"wgmma.cuh", wgmma_cuh},
    {"delta_tiles.cuh", delta_tiles_cuh},
    {"attention_tiles.cuh", attention_tiles_cuh},
    {"cell_team.cuh", cell_team_cuh},
    {"cell_code.cuh", cell_code_cuh},
    {"cell_products.cuh", cell_products_cuh},
    {"cell_units.cuh", cell_units_cuh},
    {"cell_newton.cuh", cell_newton_cuh},
    {"cell_rows.cuh", cell_rows_cuh},
    {"chunk_common.cuh", chunk_common_cuh},
    {"chunk_prepare.cuh", chunk_prepare_cuh},
    {"chunk_mild.cuh", chunk_mild_cuh},
    {"chunk_normalizer.cuh", chunk_normalizer_cuh},
    {"chunk_gradient_mild.cuh", chunk_gradient_mild_cuh},
    {"chunk_prepare_mild.cuh", chunk_prepare_mild_cuh},
    {"chunk_walk.cuh", chunk_walk_cuh},
    {"chunk_gradient.cuh", chunk_gradient_cuh},
    {"chunk_gradient_layout.cuh", chunk_gradient_layout_cuh},
    {"chunk_gradient_linear.cuh", chunk_gradient_linear_cuh},
    {"chunk_gradient_levels.cuh", chunk_gradient_levels_cuh},
    {"chunk_gradient_scalar.cuh", chunk_gradient_scalar_cuh},
    {"chunk_solve.cuh", chunk_solve_cuh},
    {"token_machine.cuh", token_machine_cuh},
    {"token_stream.cuh", token_stream_cuh},
    {"token_pairs.cuh", token_pairs_cuh},
    {"token_norm.cuh", token_norm_cuh},
    {"token_operand.cuh", token_operand_cuh},
    {"token_matrix.cuh", token_matrix_cuh},
    {"token_attention.cuh", token_attention_cuh},
    {"gyre_cuda_args.h", args_h},
    {"gyre_cuda_engine_args.h", engine_args_h},
    {"gyre_cuda_token_args.h", token_args_h},
    {"philox.cuh", philox_cuh},
    {"evolution_numbers.cuh", evolution_numbers_cuh},
    {"egg.cuh", egg_cuh},
    {"egg_numbers.cuh", egg_numbers_cuh},
    {"egg_products.cuh", egg_products_cuh},
    {"egg_pipeline.cuh", egg_pipeline_cuh},
    {"gyre_cuda_egg_args.h", egg_args_h},
    {NULL, NULL},
};

const gyre_cuda_source *gyre_cuda_kernel_sources(void) { return kernels; }
const gyre_cuda_source *gyre_cuda_kernel_headers(void) { return headers; }
