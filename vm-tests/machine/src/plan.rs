//! Which guest, and the QEMU arguments that make it.
//!
//! q35 and these CPU flags were chosen by booting: microvm hung in most boots and the older pc now
//! and then, q35 in none of 192; without KVM the string instructions that `max` announces are slow.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hsm_vm_init::{CONTROL, HOST_TAG, JOB_TAG, STDERR, STDOUT};

/// How the guest's instructions are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// Translated by QEMU: works everywhere, three to eight times slower.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        })
    }
}

/// When the guest's kernel may switch away from a task that is in the kernel.
///
/// Since Linux 7.0 x86 has these two only: `none` and `voluntary` went when `lazy` replaced them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preempt {
    /// At every point outside critical sections.
    Full,
    /// Ordinary tasks only at the next clock tick: the kernel's default.
    Lazy,
}

impl Preempt {
    fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Lazy => "lazy",
        }
    }
}

impl FromStr for Preempt {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "full" => Ok(Self::Full),
            "lazy" => Ok(Self::Lazy),
            "none" | "voluntary" => Err(format!(
                "Linux 7 on x86 has no preemption model '{text}' any more, only full and lazy"
            )),
            _ => Err("the preemption models are full and lazy".to_owned()),
        }
    }
}

/// A guest to be booted.
#[derive(Debug, Clone)]
pub struct Vm {
    /// `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// An uncompressed kernel with a PVH entry.
    pub kernel: PathBuf,
    /// The static program `hsm-vm-init`.
    pub init: PathBuf,
    /// KVM or TCG.
    pub accel: Accel,
    /// Processors.
    pub smp: u32,
    /// MiB of memory; what the job writes outside the scratch disk is kept there, too.
    pub memory_mib: u32,
    /// One virtual nanosecond per instruction: times in the guest count instructions and repeat
    /// to a few, while real time passes differently. Needs TCG.
    pub icount: bool,
    /// The preemption model; `None` leaves the kernel's default.
    pub preempt: Option<Preempt>,
    /// More words for the kernel's command line.
    pub kernel_args: Vec<String>,
    /// Size of the scratch disk; its image is sparse.
    pub scratch_bytes: u64,
    /// How long user space may take to appear.
    pub boot_limit: Duration,
    /// How long the job may take.
    pub job_limit: Duration,
}

/// The files of one run, all in one directory.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The directory of the run.
    pub dir: PathBuf,
    /// What the guest can write.
    pub job: PathBuf,
}

impl Layout {
    /// The initramfs.
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }

    /// The scratch disk's image.
    pub fn scratch(&self) -> PathBuf {
        self.dir.join("scratch.img")
    }

    /// The Unix socket behind a port.
    pub fn socket(&self, port: &str) -> PathBuf {
        self.dir.join(port)
    }
}

/// With `-icount shift=0` the guest's counter is the number of its instructions, one a nanosecond.
const ICOUNT_KHZ: u64 = 1_000_000;

/// The name of the kernel console's socket; the others are called like their ports.
pub const CONSOLE: &str = "console";

/// Every socket that QEMU connects to.
pub const SOCKETS: [&str; 4] = [CONSOLE, CONTROL, STDOUT, STDERR];

impl Vm {
    /// QEMU's arguments. With a terminal the guest has a console on QEMU's standard input and
    /// output. `tsc_khz` is the frequency of the host's time stamp counter.
    pub fn arguments(&self, layout: &Layout, terminal: bool, tsc_khz: u64) -> Vec<String> {
        let mut list = Arguments::default();
        list.words("-nodefaults -no-user-config -no-reboot -display none -nic none -M q35");
        self.processor(&mut list);
        list.pair("-m", format!("{}M", self.memory_mib));
        list.pair("-kernel", self.kernel.display().to_string());
        list.pair("-initrd", layout.initramfs().display().to_string());
        list.pair("-append", self.command_line(tsc_khz));
        list.words("-device virtio-rng-pci -device virtio-serial-pci,max_ports=8");
        list.socket(layout, CONSOLE);
        list.pair("-serial", format!("chardev:{CONSOLE}"));
        for port in [CONTROL, STDOUT, STDERR] {
            list.socket(layout, port);
            list.pair("-device", format!("virtserialport,chardev={port},name={port}"));
        }
        if terminal {
            list.words("-chardev stdio,id=terminal,mux=on,signal=off");
            list.words("-device virtconsole,chardev=terminal");
        }
        let scratch = escape(&layout.scratch());
        list.pair(
            "-drive",
            format!("file={scratch},if=none,id=scratch,format=raw,cache=unsafe,discard=unmap"),
        );
        list.words("-device virtio-blk-pci,drive=scratch");
        list.shared(HOST_TAG, Path::new("/"), ",readonly=on,multidevs=remap");
        list.shared(JOB_TAG, &layout.job, ",multidevs=remap");
        list.0
    }

    fn processor(&self, list: &mut Arguments) {
        match (self.accel, self.icount) {
            (Accel::Kvm, _) => list.words("-accel kvm -cpu host"),
            (Accel::Tcg, icount) => {
                let thread = if icount { "single" } else { "multi" };
                list.pair("-accel", format!("tcg,thread={thread}"));
                list.words("-cpu max,-erms,-fsrm,-fsrs,-fzrm");
                if icount {
                    list.words("-icount shift=0,sleep=off");
                }
            }
        }
        list.pair("-smp", self.smp.to_string());
    }

    /// Warnings must reach the console (`quiet` would hide them): they fail the run. The watchdogs
    /// are patient, because the host may be busy.
    fn command_line(&self, tsc_khz: u64) -> String {
        let mut line = String::from(
            "console=ttyS0 loglevel=5 panic=-1 oops=panic no_timer_check tsc=reliable \
             watchdog_thresh=30",
        );
        if self.accel == Accel::Tcg {
            let khz = if self.icount { ICOUNT_KHZ } else { tsc_khz };
            line += &format!(" tsc_early_khz={khz}");
        }
        if let Some(preempt) = self.preempt {
            line += &format!(" preempt={}", preempt.name());
        }
        for arg in &self.kernel_args {
            line.push(' ');
            line += arg;
        }
        line
    }
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn words(&mut self, text: &str) {
        self.0.extend(text.split(' ').map(str::to_owned));
    }

    fn pair(&mut self, option: &str, value: String) {
        self.0.extend([option.to_owned(), value]);
    }

    fn socket(&mut self, layout: &Layout, port: &str) {
        let path = escape(&layout.socket(port));
        self.pair("-chardev", format!("socket,id={port},path={path}"));
    }

    fn shared(&mut self, tag: &str, path: &Path, options: &str) {
        let path = escape(path);
        let local = format!("local,id={tag},path={path},security_model=none{options}");
        self.pair("-fsdev", local);
        self.pair("-device", format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    }
}

/// In QEMU's option lists a comma ends a value unless it is doubled.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> Vm {
        Vm {
            qemu: "qemu".into(),
            kernel: "/k/vmlinux".into(),
            init: "/k/init".into(),
            accel: Accel::Tcg,
            smp: 2,
            memory_mib: 1024,
            icount: false,
            preempt: None,
            kernel_args: Vec::new(),
            scratch_bytes: 1 << 30,
            boot_limit: Duration::from_secs(30),
            job_limit: Duration::from_secs(60),
        }
    }

    fn line(vm: &Vm, terminal: bool) -> String {
        let layout = Layout { dir: "/run,1".into(), job: "/job".into() };
        vm.arguments(&layout, terminal, 2_600_000).join(" ")
    }

    #[test]
    fn tcg_is_parallel_unless_instructions_are_counted() {
        assert!(line(&vm(), false).contains("-accel tcg,thread=multi -cpu max,-erms"));
        let counted = line(&Vm { icount: true, ..vm() }, false);
        assert!(counted.contains("thread=single"), "{counted}");
        assert!(counted.contains("-icount shift=0,sleep=off"), "{counted}");
        assert!(counted.contains("tsc_early_khz=1000000"), "{counted}");
    }

    #[test]
    fn the_host_is_read_only() {
        let line = line(&vm(), false);
        assert!(line.contains("id=hsm-host,path=/,security_model=none,readonly=on"), "{line}");
        assert!(line.contains("id=hsm-job,path=/job,security_model=none,multidevs"), "{line}");
    }

    #[test]
    fn commas_in_paths_do_not_end_options() {
        assert!(line(&vm(), false).contains("file=/run,,1/scratch.img,if=none"));
    }

    #[test]
    fn warnings_are_shown_and_the_model_is_chosen() {
        let vm =
            Vm { preempt: Some(Preempt::Full), kernel_args: vec!["kmemleak=on".into()], ..vm() };
        let line = vm.command_line(2_600_000);
        assert!(line.contains("loglevel=5") && !line.contains("quiet"), "{line}");
        assert!(line.ends_with("preempt=full kmemleak=on"), "{line}");
    }

    #[test]
    fn models_that_the_kernel_no_longer_has_are_explained() {
        assert_eq!("lazy".parse(), Ok(Preempt::Lazy));
        assert!("none".parse::<Preempt>().unwrap_err().contains("any more"));
    }

    #[test]
    fn only_a_person_gets_a_terminal() {
        assert!(!line(&vm(), false).contains("virtconsole"));
        assert!(line(&vm(), true).contains("-device virtconsole,chardev=terminal"));
    }
}
