//! Bytes from the kernel into types: the one place.

use memwatch_common::{Event, EventKind, SiteKey};
use thiserror::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    #[error("a record of {found} bytes, where {expected} were due")]
    Length { found: usize, expected: usize },
    #[error("an event of unknown kind {0}")]
    Kind(u32),
}

/// An event and its kind.
pub fn event(bytes: &[u8]) -> Result<(EventKind, Event), DecodeError> {
    check_length::<Event>(bytes)?;
    // SAFETY: the length is right, and any bytes make an Event: it holds integers only.
    let event: Event = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
    let kind = EventKind::from_u32(event.kind).ok_or(DecodeError::Kind(event.kind))?;
    Ok((kind, event))
}

/// The key of a site that changed.
pub fn site_key(bytes: &[u8]) -> Result<SiteKey, DecodeError> {
    check_length::<SiteKey>(bytes)?;
    // SAFETY: the length is right, and any bytes make a key: it holds integers only.
    Ok(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

fn check_length<T>(bytes: &[u8]) -> Result<(), DecodeError> {
    if bytes.len() == size_of::<T>() {
        return Ok(());
    }
    Err(DecodeError::Length {
        found: bytes.len(),
        expected: size_of::<T>(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_give_an_event_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            match event(&bytes) {
                Ok((kind, event)) => prop_assert_eq!(kind as u32, event.kind),
                Err(DecodeError::Length { found, .. }) => prop_assert_eq!(found, bytes.len()),
                Err(DecodeError::Kind(kind)) => prop_assert!(EventKind::from_u32(kind).is_none()),
            }
        }
    }

    #[test]
    fn a_key_needs_all_its_bytes() {
        let key = SiteKey {
            instance: 7,
            domain: 2,
            stack: 0x1234,
        };
        // SAFETY: a key is 16 bytes of integers.
        let bytes: [u8; size_of::<SiteKey>()] = unsafe { std::mem::transmute(key) };
        assert_eq!(site_key(&bytes), Ok(key));
        assert!(site_key(&bytes[1..]).is_err());
    }

    #[test]
    fn an_event_comes_back_as_it_was() {
        let mut sent = Event::ZERO;
        sent.kind = EventKind::Fork as u32;
        sent.pid = 42;
        sent.b = u64::MAX;
        // SAFETY: an Event is 80 bytes of integers.
        let bytes: [u8; size_of::<Event>()] = unsafe { std::mem::transmute(sent) };
        assert_eq!(event(&bytes), Ok((EventKind::Fork, sent)));
    }
}
