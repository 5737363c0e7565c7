//! The queue of requests: a ring buffer shared with the kernel.

use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{Map, MapData, RingBuf};
use hsm_common::filter::{REQUESTS, Request};

use super::BpfError;
use super::maps::failed;

/// The reading end. Readable (poll, epoll) when there are requests.
pub struct Requests(RingBuf<MapData>);

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Requests").finish_non_exhaustive()
    }
}

impl Requests {
    pub(super) fn open(map: MapData) -> Result<Self, BpfError> {
        let ring = Map::from_map_data(map).and_then(RingBuf::try_from);
        ring.map(Self).map_err(failed(REQUESTS, "opening"))
    }

    /// The next request; `None` when there is none now. Records of another size, which no program
    /// of this version writes, are passed over.
    #[expect(clippy::should_implement_trait, reason = "ends now and goes on later")]
    pub fn next(&mut self) -> Option<Request> {
        loop {
            let item = self.0.next()?;
            if let Ok(request) = bytemuck::try_pod_read_unaligned(&item) {
                return Some(request);
            }
        }
    }
}

impl AsFd for Requests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
