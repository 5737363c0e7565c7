//! `BPF_MAP_TYPE_TASK_STORAGE`, which aya-ebpf has no type for.

use core::ptr::{null, null_mut};

use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE;
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, task_struct};
use aya_ebpf::helpers::generated::bpf_task_storage_get;

/// Values that belong to threads. The loader reads the map's properties from the types of the
/// fields, which hold nothing.
#[repr(C)]
pub struct TaskStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the fields are never read.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    /// A definition for the loader.
    pub const fn new() -> Self {
        Self { r#type: null(), key: null(), value: null(), max_entries: null(), map_flags: null() }
    }

    /// The thread's value; null when it has none.
    ///
    /// # Safety
    /// `task` is a pointer to a thread that the verifier knows.
    #[inline(always)]
    pub unsafe fn get(&self, task: *const u8) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.get_with(task, 0) }
    }

    /// The thread's value, all zeros if it had none; null when memory is short.
    ///
    /// # Safety
    /// As [`Self::get`].
    #[inline(always)]
    pub unsafe fn get_or_create(&self, task: *const u8) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.get_with(task, BPF_LOCAL_STORAGE_GET_F_CREATE) }
    }

    #[inline(always)]
    unsafe fn get_with(&self, task: *const u8, flags: u32) -> *mut T {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        let task = task.cast_mut().cast::<task_struct>();
        // SAFETY: the caller's promise.
        unsafe { bpf_task_storage_get(map, task, null_mut(), u64::from(flags)).cast() }
    }
}
