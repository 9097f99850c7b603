// Reading ahead. A decoding step multiplies by the same matrices in the same order for every token, and
// between two products only the caller has work: small ops of some tens of microseconds. Workers that
// wait then bring the part of the next matrix that they are likely to multiply into their caches.
#pragma once
#include "ck_common.h"

/// A matrix of `byte_count` bytes has just been multiplied by few rows. Learns which one follows which,
/// and hands the one that followed last time to the workers. Results do not depend on it, and addresses
/// may be gone by then: prefetching them does nothing.
void ck_read_ahead_of(const void *matrix, size_t byte_count);

/// Prefetches a small piece of what was handed over; false where there is none left. For workers.
bool ck_read_ahead_piece(void);
