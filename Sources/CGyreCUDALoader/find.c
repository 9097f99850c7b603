#define _GNU_SOURCE
#include "find.h"

#include <dlfcn.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const folders[] = {
    "/usr/local/cuda/lib64",
    "/usr/local/cuda-*/lib64",
    "/usr/local/cuda/targets/*-linux/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "$VIRTUAL_ENV/lib/python3*/site-packages/nvidia/*/lib",
    "$CONDA_PREFIX/lib",
    "$CONDA_PREFIX/lib/python3*/site-packages/nvidia/*/lib",
    "$HOME/.local/lib/python3*/site-packages/nvidia/*/lib",
    "/usr/lib/python3*/*-packages/nvidia/*/lib",
    "/usr/lib/python3/dist-packages/nvidia/*/lib",
    "/usr/local/lib/python3*/*-packages/nvidia/*/lib",
    "/opt/*/lib/python3*/site-packages/nvidia/*/lib",
    "/opt/*/.venv/lib/python3*/site-packages/nvidia/*/lib",
};

// Replaces a leading variable; false when it is not set.
static bool expand(const char *folder, char *out, size_t size) {
  if (folder[0] != '$') return snprintf(out, size, "%s", folder) < (int)size;
  const char *slash = strchr(folder, '/');
  char name[64];
  size_t length = slash ? (size_t)(slash - folder - 1) : strlen(folder) - 1;
  if (length >= sizeof name) return false;
  memcpy(name, folder + 1, length);
  name[length] = 0;
  const char *value = getenv(name);
  if (!value || !*value) return false;
  return snprintf(out, size, "%s%s", value, slash ? slash : "") < (int)size;
}

// Opens the newest file of a folder that fits the pattern.
static void *open_in(
    const gyre_library *library, const char *folder, gyre_cuda_library_status *status) {
  char path[768];
  if (library->companion) {
    snprintf(path, sizeof path, "%s/%s", folder, library->companion);
    glob_t found;
    if (glob(path, 0, NULL, &found) == 0) {
      dlopen(found.gl_pathv[found.gl_pathc - 1], RTLD_NOW | RTLD_GLOBAL);
      globfree(&found);
    }
  }
  snprintf(path, sizeof path, "%s/%s", folder, library->pattern);
  glob_t found;
  if (glob(path, 0, NULL, &found) != 0) return NULL;
  void *handle = NULL;
  for (size_t i = found.gl_pathc; i > 0 && !handle; i--) {
    handle = dlopen(found.gl_pathv[i - 1], RTLD_NOW | RTLD_LOCAL);
    if (handle) snprintf(status->found, sizeof status->found, "%s", found.gl_pathv[i - 1]);
  }
  globfree(&found);
  return handle;
}

static void *open_named(const gyre_library *library, gyre_cuda_library_status *status) {
  const char *given = getenv("GYRE_CUDA_PATH");
  char list[2048];
  snprintf(list, sizeof list, "%s", given ? given : "");
  char *rest = list;
  for (char *folder; (folder = strsep(&rest, ":")) != NULL;) {
    if (!*folder) continue;
    static const char *const below[] = {"", "/lib64", "/lib"};
    for (size_t i = 0; i < GYRE_COUNT(below); i++) {
      char place[2304];
      snprintf(place, sizeof place, "%s%s", folder, below[i]);
      void *handle = open_in(library, place, status);
      if (handle) return handle;
    }
  }
  for (const char *const *name = library->sonames; *name; name++) {
    void *handle = dlopen(*name, RTLD_NOW | RTLD_LOCAL);
    if (handle) {
      snprintf(status->found, sizeof status->found, "%s", *name);
      return handle;
    }
  }
  for (size_t i = 0; i < GYRE_COUNT(folders); i++) {
    char folder[512];
    if (!expand(folders[i], folder, sizeof folder)) continue;
    void *handle = open_in(library, folder, status);
    if (handle) return handle;
  }
  return NULL;
}

bool gyre_library_open(
    const gyre_library *library, void *table, gyre_cuda_library_status *status) {
  status->message[0] = status->found[0] = 0;
  void *handle = open_named(library, status);
  if (!handle) {
    snprintf(
        status->message, sizeof status->message,
        "%s was not found (looked in GYRE_CUDA_PATH, the dynamic linker's folders, "
        "/usr/local/cuda*/lib64 and Python's nvidia packages); %s",
        library->sonames[0], library->advice);
    return false;
  }
  for (size_t i = 0; i < library->symbol_count; i++) {
    void *symbol = dlsym(handle, library->symbols[i].name);
    if (!symbol) {
      snprintf(
          status->message, sizeof status->message, "%s is too old: it lacks %s; %s", status->found,
          library->symbols[i].name, library->advice);
      dlclose(handle);
      return false;
    }
    memcpy((char *)table + library->symbols[i].offset, &symbol, sizeof symbol);
  }
  return true;
}
