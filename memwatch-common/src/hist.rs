//! Power-of-two histograms, the same arithmetic on both sides of the border.

use crate::limits::{LIFETIME_BUCKETS, SIZE_BUCKETS};

/// The number of bits that `value` needs, without a loop: BPF has no instruction for it.
#[inline]
const fn bit_length(mut value: u64) -> usize {
    let mut bits = 0;
    if value >= 1 << 32 {
        value >>= 32;
        bits += 32;
    }
    if value >= 1 << 16 {
        value >>= 16;
        bits += 16;
    }
    if value >= 1 << 8 {
        value >>= 8;
        bits += 8;
    }
    if value >= 1 << 4 {
        value >>= 4;
        bits += 4;
    }
    if value >= 1 << 2 {
        value >>= 2;
        bits += 2;
    }
    if value >= 1 << 1 {
        value >>= 1;
        bits += 1;
    }
    bits + value as usize
}

/// The bucket of a block of `bytes`.
#[inline]
pub const fn size_bucket(bytes: u64) -> usize {
    let bits = bit_length(bytes);
    if bits < SIZE_BUCKETS {
        bits
    } else {
        SIZE_BUCKETS - 1
    }
}

/// The bucket of a life of `nanoseconds`, counted in units of 1.024 microseconds.
#[inline]
pub const fn lifetime_bucket(nanoseconds: u64) -> usize {
    let bits = bit_length(nanoseconds >> 10);
    if bits < LIFETIME_BUCKETS {
        bits
    } else {
        LIFETIME_BUCKETS - 1
    }
}

/// The exclusive upper edge of a lifetime bucket in seconds; the last bucket has none.
pub fn lifetime_bucket_below_seconds(bucket: usize) -> Option<f64> {
    (bucket + 1 < LIFETIME_BUCKETS).then(|| (1_u64 << (bucket + 10)) as f64 / 1e9)
}

/// The exclusive upper edge of a size bucket in bytes; the last bucket has none.
pub fn size_bucket_below(bucket: usize) -> Option<u64> {
    (bucket + 1 < SIZE_BUCKETS).then(|| 1_u64 << bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_lies_below_its_bucket_edge_and_not_below_the_one_before() {
        for size in (0..70_000_u64).chain([1 << 20, (1 << 30) - 1, 1 << 30, u64::MAX]) {
            let bucket = size_bucket(size);
            assert!(size_bucket_below(bucket).is_none_or(|edge| size < edge), "{size}");
            if bucket > 0 {
                assert!(
                    size_bucket_below(bucket - 1).is_some_and(|edge| size >= edge),
                    "{size}"
                );
            }
        }
    }

    #[test]
    fn bit_length_equals_the_standard_library() {
        for value in (0..4096)
            .chain((0..64).map(|s| 1_u64 << s))
            .chain((1..64).map(|s| (1_u64 << s) - 1))
        {
            assert_eq!(bit_length(value), (64 - value.leading_zeros()) as usize);
        }
    }
}
