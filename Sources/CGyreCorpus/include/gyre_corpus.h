// The text that `gyre train` uses when it is given none: the first 1,300,000 bytes of the plays and
// poems of William Shakespeare (public domain; Project Gutenberg's text).
#pragma once
#include <stddef.h>

const unsigned char *gyre_corpus_bytes(void);
size_t gyre_corpus_count(void);
