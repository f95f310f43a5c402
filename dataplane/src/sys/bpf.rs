//! `bpf(2)` on maps and links that are pinned.

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use portolan_abi::{
    address::{V4, V6},
    affinity::{AffinityEntry, AffinityKey},
    backend::Backend,
    choice::{ChoiceLine, Load, Share},
    config::NodeConfig,
    counters::ServiceCount,
    flow::{BucketV4, BucketV6},
    namespace::NamespaceEntry,
    pod::PodEntry,
    report::{Report, Watch},
    sender::SenderEntry,
    service::{ServiceEntry, ServiceKey, ServiceRecord},
    socket_table::SocketBucket,
    source_range::RangeKey,
};

const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const MAP_DELETE: libc::c_long = 3;
const MAP_NEXT_KEY: libc::c_long = 4;
const OBJECT_GET: libc::c_long = 7;
const OBJECT_INFO: libc::c_long = 15;
const MAP_LOOKUP_BATCH: libc::c_long = 24;

/// `ENOTSUPP`, which the kernel means for itself.
const NOT_SUPPORTED: i32 = 524;

/// How many entries are read at once.
const BATCH: usize = 1_024;
const LINK_DETACH: libc::c_long = 34;
const LINK_UPDATE: libc::c_long = 29;

/// A type that may be read from any bytes of its size, and whose bytes are all initialized.
///
/// # Safety
/// Every bit pattern must be a valid value and the type must have no padding.
pub unsafe trait Plain: Copy + 'static {}

// SAFETY: integers have both properties.
unsafe impl Plain for u32 {}
// SAFETY: integers have both properties.
unsafe impl Plain for u64 {}

/// A value from its bytes, wherever they lie.
///
/// # Panics
/// If there are too few.
pub fn plain<T: Plain>(bytes: &[u8]) -> T {
    assert!(bytes.len() >= mem::size_of::<T>(), "all bytes of a value");
    // SAFETY: the bytes are there, and all patterns of them are valid for a plain type.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: a structure of integers; portolan-abi asserts that it has no padding.
            unsafe impl Plain for $type {}
        )*
    };
}

plain!(
    AffinityEntry,
    AffinityKey,
    Backend,
    BucketV4,
    BucketV6,
    ChoiceLine,
    Load,
    NamespaceEntry,
    NodeConfig,
    PodEntry,
    RangeKey,
    Report,
    SenderEntry,
    ServiceCount,
    ServiceEntry,
    ServiceKey<V4>,
    ServiceKey<V6>,
    ServiceRecord,
    Share,
    SocketBucket,
    V4,
    V6,
    Watch,
);

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map: u32,
    padding: u32,
    key: u64,
    value_or_next: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// `struct bpf_link_info` up to the interface, which XDP and tcx links have in the same place.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    interface: u32,
    attach_type: u32,
}

/// `struct bpf_link_info` up to the control group.
#[repr(C)]
#[derive(Default)]
struct CgroupLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    cgroup: u64,
    attach_type: u32,
    end: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Runs a command that makes a descriptor.
pub fn make<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = i32::try_from(call(command, attr)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn call<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is as long as is said, and the pointers in it are to memory that its makers hold.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            mem::size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr {
        path: path.as_ptr() as u64,
        ..ObjectAttr::default()
    };
    let fd = call(OBJECT_GET, &mut attr)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn descriptor(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn info<T: Default>(fd: &OwnedFd) -> io::Result<T> {
    let mut info = T::default();
    let length = u32::try_from(mem::size_of::<T>()).map_err(io::Error::other)?;
    let mut attr = InfoAttr {
        fd: descriptor(fd),
        length,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    call(OBJECT_INFO, &mut attr)?;
    Ok(info)
}

/// The interface that a pinned link hangs on; 0 when that interface is gone.
pub fn link_interface(path: &Path) -> io::Result<u32> {
    let fd = open_pin(path)?;
    Ok(info::<LinkInfo>(&fd)?.interface)
}

/// Detaches the program of a pinned link at once; without this it stays until the kernel gets round to freeing the link.
pub fn detach_link(path: &Path) -> io::Result<()> {
    let link = open_pin(path)?;
    call(LINK_DETACH, &mut u64::from(descriptor(&link))).map(drop)
}

/// The id of the control group that a pinned link hangs on, which is its folder's inode number; 0 when that is gone.
pub fn link_cgroup(path: &Path) -> io::Result<u64> {
    let fd = open_pin(path)?;
    Ok(info::<CgroupLinkInfo>(&fd)?.cgroup)
}

/// Puts a program in the place of the one behind a pinned link; there is no moment without either.
pub fn replace_program(path: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = open_pin(path)?;
    let mut attr = LinkUpdateAttr {
        link: descriptor(&link),
        program: program.as_raw_fd().unsigned_abs(),
        ..LinkUpdateAttr::default()
    };
    call(LINK_UPDATE, &mut attr).map(drop)
}

/// How many CPUs there may ever be: how many values a per-CPU map keeps for a key.
pub fn possible_cpus() -> io::Result<usize> {
    let ranges = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = ranges.trim().rsplit(['-', ',']).next().unwrap_or_default();
    last.parse::<usize>()
        .map(|last| last + 1)
        .map_err(io::Error::other)
}

/// A map by its descriptor.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

impl Map {
    /// Opens a pinned map.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = open_pin(path)?;
        let MapInfo {
            key_size,
            value_size,
            max_entries,
            ..
        } = info(&fd)?;
        Ok(Self {
            fd,
            key_size,
            value_size,
            max_entries,
        })
    }

    /// How many entries fit.
    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// How many bytes a value has.
    pub fn value_size(&self) -> u32 {
        self.value_size
    }

    /// How many bytes of the kernel's memory it takes.
    pub fn memory(&self) -> io::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd()))?;
        text.lines()
            .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
            .ok_or_else(|| io::Error::other("the kernel does not say how much memory a map takes"))
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    fn attr<K: Plain>(&self, key: &K) -> ElementAttr {
        assert_eq!(
            mem::size_of::<K>(),
            self.key_size as usize,
            "the key's type is the map's"
        );
        ElementAttr {
            map: descriptor(&self.fd),
            key: std::ptr::from_ref(key) as u64,
            ..ElementAttr::default()
        }
    }

    /// The first four bytes of an array's first value, whatever size its values have.
    pub fn first_word(&self) -> io::Result<u32> {
        let mut value = vec![0_u8; self.value_size as usize];
        let mut attr = self.attr(&0_u32);
        attr.value_or_next = value.as_mut_ptr() as u64;
        call(MAP_LOOKUP, &mut attr)?;
        let word = value
            .first_chunk()
            .ok_or_else(|| io::Error::other("a value of under four bytes"))?;
        Ok(u32::from_ne_bytes(*word))
    }

    /// The values of a key on every CPU.
    pub fn get_per_cpu<V: Plain>(&self, key: u32, cpus: usize) -> io::Result<Vec<V>> {
        assert_eq!(
            mem::size_of::<V>(),
            self.value_size as usize,
            "the value's type is the map's"
        );
        assert_eq!(
            mem::size_of::<V>() % 8,
            0,
            "the kernel pads values to eight bytes"
        );
        let mut values = Vec::<V>::with_capacity(cpus);
        let mut attr = self.attr(&key);
        attr.value_or_next = values.as_mut_ptr() as u64;
        call(MAP_LOOKUP, &mut attr)?;
        // SAFETY: the kernel has written a plain value for each possible CPU.
        unsafe { values.set_len(cpus) };
        Ok(values)
    }

    /// Sets the values of a key on every CPU; there must be one for each that there may ever be.
    pub fn set_per_cpu<V: Plain>(&self, key: u32, values: &[V]) -> io::Result<()> {
        assert_eq!(
            mem::size_of::<V>(),
            self.value_size as usize,
            "the value's type is the map's"
        );
        let mut attr = self.attr(&key);
        attr.value_or_next = values.as_ptr() as u64;
        call(MAP_UPDATE, &mut attr).map(drop)
    }

    /// Sets the value of a key, whether or not it had one; packets see the old or the new.
    pub fn set<K: Plain, V: Plain>(&self, key: &K, value: &V) -> io::Result<()> {
        assert_eq!(
            mem::size_of::<V>(),
            self.value_size as usize,
            "the value's type is the map's"
        );
        let mut attr = self.attr(key);
        attr.value_or_next = std::ptr::from_ref(value) as u64;
        call(MAP_UPDATE, &mut attr).map(drop)
    }

    /// Removes a key; succeeds if it is not there.
    pub fn remove<K: Plain>(&self, key: &K) -> io::Result<()> {
        match call(MAP_DELETE, &mut self.attr(key)) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// Every key with its value. Entries that come or go meanwhile may be missed.
    pub fn entries<K: Plain, V: Plain>(&self) -> io::Result<Vec<(K, V)>> {
        assert_eq!(
            (mem::size_of::<K>(), mem::size_of::<V>()),
            (self.key_size as usize, self.value_size as usize),
            "the types are the map's"
        );
        let mut entries = Vec::new();
        // Where the kernel goes on: a key or the number of a hash bucket, of which each has room in a key of ours.
        let mut position = vec![0_u8; mem::size_of::<K>().max(8)];
        let mut is_first = true;
        let mut size = BATCH;
        loop {
            let mut keys = Vec::<K>::with_capacity(size);
            let mut values = Vec::<V>::with_capacity(size);
            let mut attr = BatchAttr {
                from: if is_first {
                    0
                } else {
                    position.as_ptr() as u64
                },
                next: position.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(size).map_err(io::Error::other)?,
                map: descriptor(&self.fd),
                ..BatchAttr::default()
            };
            let is_last = match call(MAP_LOOKUP_BATCH, &mut attr) {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // A bucket holds more than there was room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    size *= 2;
                    continue;
                }
                // Before 5.14, tries have no batches.
                Err(error) if error.raw_os_error() == Some(NOT_SUPPORTED) => {
                    return self.entries_singly();
                }
                Err(error) => return Err(error),
            };
            let found = attr.count as usize;
            assert!(
                found <= size,
                "the kernel keeps to the room that it was given"
            );
            // SAFETY: the kernel has written so many keys and values, which are plain.
            unsafe {
                keys.set_len(found);
                values.set_len(found);
            }
            entries.extend(keys.into_iter().zip(values));
            is_first = false;
            if is_last {
                return Ok(entries);
            }
        }
    }

    fn entries_singly<K: Plain, V: Plain>(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries: Vec<(K, V)> = Vec::new();
        loop {
            let mut key = Vec::<K>::with_capacity(1);
            let mut value = Vec::<V>::with_capacity(1);
            let mut attr = ElementAttr {
                map: descriptor(&self.fd),
                key: entries
                    .last()
                    .map_or(0, |(last, _)| std::ptr::from_ref(last) as u64),
                value_or_next: key.as_mut_ptr() as u64,
                ..ElementAttr::default()
            };
            match call(MAP_NEXT_KEY, &mut attr) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(entries),
                Err(error) => return Err(error),
            }
            attr.key = key.as_ptr() as u64;
            attr.value_or_next = value.as_mut_ptr() as u64;
            call(MAP_LOOKUP, &mut attr)?;
            // SAFETY: the kernel has written one of each, which are plain.
            unsafe {
                key.set_len(1);
                value.set_len(1);
            }
            entries.extend(key.into_iter().zip(value));
        }
    }
}
