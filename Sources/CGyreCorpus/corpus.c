#include "gyre_corpus.h"

static const unsigned char text[] = {
#embed "text/shakespeare.txt"
};

const unsigned char *gyre_corpus_bytes(void) { return text; }
size_t gyre_corpus_count(void) { return sizeof text; }
