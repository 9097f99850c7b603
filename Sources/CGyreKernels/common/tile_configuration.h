// What AMX's tile instructions work under.
#pragma once
#include <stdint.h>

/// As `_tile_loadconfig` reads it.
struct ck_tile_configuration {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

/// Eight tiles of 64-byte rows: `rows` of them in tiles before `first`, 16 in the others.
static inline struct ck_tile_configuration ck_tile_shapes(int first, int rows) {
  struct ck_tile_configuration c = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    c.row_bytes[i] = 64;
    c.rows[i] = (uint8_t)(i < first ? rows : 16);
  }
  return c;
}
