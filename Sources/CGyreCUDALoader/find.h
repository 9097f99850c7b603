// Finding and opening a shared library, and filling a table from it.
#pragma once
#include "gyre_cuda_loader.h"

typedef struct gyre_symbol {
  const char *name;
  size_t offset;  // of the pointer in the table
} gyre_symbol;

typedef struct gyre_library {
  const char *const *sonames;   // tried by the dynamic linker, newest first; ends with NULL
  const char *pattern;          // of the file in other folders, as glob takes it
  const char *companion;        // pattern of a library that must be loaded before; or NULL
  const char *advice;           // how to get it
  const gyre_symbol *symbols;
  size_t symbol_count;
} gyre_library;

// True when the library was opened and has every symbol.
bool gyre_library_open(
    const gyre_library *library, void *table, gyre_cuda_library_status *status);

#define GYRE_COUNT(list) (sizeof(list) / sizeof((list)[0]))
