//! What a call of an allocation function asks for, by its arguments.

use memwatch_common::Function;

use crate::arch::Registers;

const CALLOC: u8 = Function::Calloc as u8;
const REALLOC: u8 = Function::Realloc as u8;
const REALLOCARRAY: u8 = Function::Reallocarray as u8;
const MEMALIGN: u8 = Function::Memalign as u8;
const POSIX_MEMALIGN: u8 = Function::PosixMemalign as u8;
const PVALLOC: u8 = Function::Pvalloc as u8;
const PYTHON_POOL: u8 = Function::PythonPool as u8;

/// What the arguments ask for: bytes, the old block, where the result will stand.
pub struct Request {
    pub bytes: u64,
    pub old_address: u64,
    pub result_at: u64,
}

#[inline(always)]
pub fn of(function: u8, registers: Registers<'_>) -> Request {
    let (a, b, c) = (
        registers.argument_0(),
        registers.argument_1(),
        registers.argument_2(),
    );
    let mut request = Request {
        bytes: a,
        old_address: 0,
        result_at: 0,
    };
    match function {
        CALLOC => request.bytes = product(a, b),
        REALLOC => {
            request.old_address = a;
            request.bytes = b;
        }
        REALLOCARRAY => {
            request.old_address = a;
            request.bytes = product(b, c);
        }
        MEMALIGN => request.bytes = b,
        POSIX_MEMALIGN => {
            request.result_at = a;
            request.bytes = c;
        }
        // For pymalloc it is no size.
        PYTHON_POOL => request.bytes = c,
        PVALLOC => request.bytes = a.wrapping_add(4095) & !4095,
        _ => {}
    }
    request
}

/// `a * b`, or a size that no call can get: the call will fail then. By halves, since BPF has no wide product.
#[inline(always)]
fn product(a: u64, b: u64) -> u64 {
    if (a | b) >> 32 == 0 {
        return a * b;
    }
    let (large, small) = if a > b { (a, b) } else { (b, a) };
    if small >> 32 != 0 {
        return u64::MAX;
    }
    let high = (large >> 32) * small;
    let low = (large & 0xffff_ffff) * small;
    let sum = (high << 32).wrapping_add(low);
    if high >> 32 != 0 || sum < low {
        u64::MAX
    } else {
        sum
    }
}
