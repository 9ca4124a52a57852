//! Decoding a frame that is whole in the input allocates nothing if a frame of the same size came
//! before.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use stomp::{Decoder, Options, Version};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator. The counter is thread-local and
// allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same for `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, which is the same for `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn decode(decoder: &mut Decoder, mut input: &[u8]) -> usize {
    let mut bytes = 0;
    while let Some(frame) = decoder.next(&mut input).expect("good frames") {
        bytes += frame.body.as_ref().len();
        bytes += frame
            .headers()
            .map(|header| header.value().len())
            .sum::<usize>();
    }
    bytes
}

#[test]
fn a_whole_frame_needs_no_allocation() {
    let frame = |n: usize| {
        format!("MESSAGE\nsubscription:0\nmessage-id:{n}\nack:{n}\ncontent-length:5\n\nhello\0\n")
    };
    let input: String = (0..10_000).map(frame).collect();
    let mut decoder = Decoder::new(Some(Version::V1_2.into()), Options::default());
    // The decoder keeps a copy of each head, and the lines of two heads. These have longer numbers
    // than all that follow, so the memory does not have to grow.
    decode(&mut decoder, frame(100_000).repeat(2).as_bytes());
    let before = ALLOCATIONS.get();
    assert!(decode(&mut decoder, input.as_bytes()) > 10_000);
    assert_eq!(ALLOCATIONS.get(), before);
}
