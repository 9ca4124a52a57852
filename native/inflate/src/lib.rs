//! Compressed bodies, sans I/O: what they are, and what is in them, piece by piece.
//!
//! Bodies come from a peer that may mean harm. How much an [`Inflater`] reads and hands out at once, and how much it
//! hands out in all, is limited, whatever the body says about itself.
//!
//! ```
//! use inflate::{Coding, Inflater, Progress};
//!
//! # use std::io::Write;
//! # let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
//! # gzip.write_all(b"a train is late").unwrap();
//! # let body = gzip.finish().unwrap();
//! let coding = Coding::of(&body, || None).expect("it begins as gzip does");
//! let mut inflater = Inflater::new();
//! inflater.start(&body, coding, 100)?;
//! assert_eq!(inflater.next(&body)?, Progress::Done);
//! assert_eq!(inflater.piece(), b"a train is late");
//! # Ok::<(), inflate::Failure>(())
//! ```
#![forbid(unsafe_code)]

mod coding;
mod gzip;
mod inflater;

pub use coding::Coding;
pub use inflater::{Failure, Inflater, Progress};
