//! Decoding frames that lie whole in the input allocates nothing, once it has seen the like.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use stomp::{Decoder, Options, Version};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: all of it is the system's allocator's doing; the count is of this thread alone and
// allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn decode(decoder: &mut Decoder, mut input: &[u8]) -> usize {
    let mut octets = 0;
    while let Some(frame) = decoder.next(&mut input).expect("good frames") {
        octets += frame.body.as_ref().len();
        octets += frame
            .headers()
            .map(|header| header.value().len())
            .sum::<usize>();
    }
    octets
}

#[test]
fn none_for_a_frame() {
    let frame = |n: usize| {
        format!("MESSAGE\nsubscription:0\nmessage-id:{n}\nack:{n}\ncontent-length:5\n\nhello\0\n")
    };
    let input: String = (0..10_000).map(frame).collect();
    let mut decoder = Decoder::new(Some(Version::V1_2), Options::default());
    // Longer numbers than any that follow: what is kept for comparison does not have to grow.
    decode(&mut decoder, frame(100_000).as_bytes());
    let before = ALLOCATIONS.get();
    assert!(decode(&mut decoder, input.as_bytes()) > 10_000);
    assert_eq!(ALLOCATIONS.get(), before);
}
