//! `cargo xtask`: the project's tasks.
//!
//! Each task sets up what it needs, says what it does and why, and times every step. A suite that
//! did not run is a failure: see [`report`].

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod apt;
mod bench;
mod build_and_load;
mod build_project;
mod conformance;
mod demo;
mod ebpf;
mod fuzz;
mod kernel;
mod lab;
mod lint;
mod overload;
mod power_cuts;
mod process;
mod report;
mod results;
mod setup;
mod steps;
mod suites;
mod torture;
mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set-up, demo, test and bench tasks of hsm")]
struct Options {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Archives, releases and transparently recalls a real tree, and checks every byte
    Demo(demo::Options),
    /// Runs everything: unit, property, conformance, S3, fuzz targets, end-to-end
    Test(suites::Options),
    /// Programs, commands, deaths and a bad store all at once, every byte compared
    Torture(torture::Options),
    /// Builds a C project in a tree whose every file is offline, and compares all that comes of it
    BuildProject(build_project::Options),
    /// Runs every paragraph of docs/SEMANTICS.md on every tier and file system, and writes the table
    Conformance(conformance::Options),
    /// Cuts the power at every flush of a mixed workload, and checks what is left
    PowerCuts(power_cuts::Options),
    /// Fuzzes every parser of foreign bytes for some minutes
    Fuzz(fuzz::Options),
    /// Measures archive, release and recall against cp
    Bench(bench::Options),
    /// Blocks thousands of readers, recalls among a million offline files, storms
    Overload(overload::Options),
    /// Builds the kernel programs, and hsm with them inside
    Build(ebpf::Options),
    /// Builds everything, tries the kernel programs on the running kernel, and tells what it lacks
    BuildAndLoad(build_and_load::Options),
    /// Boots a guest and runs the end-to-end suite, a command or a shell in it
    Vm(vm::Options),
    /// Builds the guest's kernel
    Kernel(kernel::Options),
    /// Installs what the other tasks need
    Setup,
    /// rustfmt, clippy, rustdoc and cargo-deny
    Lint,
}

fn main() -> ExitCode {
    match run(Options::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => suites::run(&options),
        Task::Torture(options) => torture::run(&options),
        Task::BuildProject(options) => build_project::run(&options),
        Task::Conformance(options) => conformance::run(&options),
        Task::PowerCuts(options) => power_cuts::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Overload(options) => overload::run(&options),
        Task::Build(options) => ebpf::run(&options),
        Task::BuildAndLoad(options) => build_and_load::run(&options),
        Task::Vm(options) => vm::run(&options),
        Task::Kernel(options) => kernel::run(&options),
        Task::Setup => setup::everything().map(|()| ExitCode::SUCCESS),
        Task::Lint => lint::run(),
    }
}
