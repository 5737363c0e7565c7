use std::time::Duration;

use bytesize::ByteSize;
use proptest::prelude::*;

use super::*;
use crate::core::Subtrees;
use crate::store::object::Compression;
use crate::store::{StoreConfig, StoreKind};

const MINIMAL: &str = r#"
[[pool]]
name = "media"
mount = "/srv/media"
[pool.store]
kind = "local"
path = "/mnt/cold/media"
"#;

fn parse(text: &str) -> Config {
    Config::parse(text, "hsm.toml").unwrap_or_else(|error| panic!("{error}"))
}

fn problems(text: &str) -> Vec<Problem> {
    match Config::parse(text, "hsm.toml") {
        Err(ConfigError::Invalid(problems)) => problems,
        other => panic!("expected problems, got {other:?}"),
    }
}

/// The one problem of a text: line, key, message and hint in one string.
fn problem(text: &str) -> String {
    let found = problems(text);
    assert_eq!(found.len(), 1, "{found:#?}");
    found[0].to_string()
}

fn assert_says(text: &str, parts: &[&str]) {
    let said = problem(text);
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in:\n{said}");
    }
}

/// [`MINIMAL`] with lines added to the pool and to the store.
fn with(pool: &str, store: &str) -> String {
    let text = MINIMAL.replace("[pool.store]", &format!("{pool}\n[pool.store]"));
    format!("{text}{store}\n")
}

fn s3(more: &str) -> String {
    let head = MINIMAL.split("[pool.store]").next().expect("a pool");
    let keys = "access_key_file = \"/k/access\"\nsecret_key_file = \"/k/secret\"";
    format!("{head}[pool.store]\nkind = \"s3\"\n{keys}\n{more}\n")
}

#[test]
fn defaults_fill_what_is_not_said() {
    let config = parse(MINIMAL);
    assert_eq!(config.agent, AgentConfig::default());
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.warnings, []);
    let pool = config.pool("media").expect("the pool");
    assert_eq!(pool.recall, RecallMode::Auto);
    assert_eq!(pool.range_programs, RangePrograms::Only(Vec::new()));
    assert_eq!(pool.min_size, ByteSize::b(1));
    assert_eq!(pool.compression, Compression::None);
    assert_eq!(pool.marker, "security.bpf.hsm");
    assert_eq!(pool.retention, Duration::from_secs(30 * 86_400));
    assert_eq!(pool.store, StoreConfig::local("/mnt/cold/media"));
    assert_eq!((pool.store.deadline, pool.store.retries), (Duration::from_secs(60), 4));
    assert_eq!(config.agent.catalog_path("media"), Path::new("/var/lib/hsm/media.db"));
}

#[test]
fn every_key_is_taken_over() {
    let config = parse(
        r#"
        [agent]
        state_dir = "/state"
        socket = "/s"
        bpf_dir = "/sys/fs/bpf/other"
        log = "debug,hyper=warn"
        log_format = "json"
        [limits]
        recall_memory = "64MiB"
        recall_parallel = 8
        recalls = 20
        recalls_per_user = 10
        local_recalls_per_user = 3
        waiting = 1000
        waiting_per_user = 100
        bulk_jobs = 3
        recall_deadline = "90s"
        release_batch = 10
        [[pool]]
        name = "a"
        mount = "/a"
        directories = ["projects", "media/raw/"]
        tier = "user-filter"
        recall = "range"
        range_programs = ["/usr/bin/ffmpeg"]
        whole_programs = ["cpio", "/opt/backup"]
        range_min_size = "1GiB"
        early_answer = true
        emergency_release = false
        min_size = "4KiB"
        compression = "zstd"
        compression_level = 19
        verify = "readback"
        marker = "security.bpf.other"
        retention = "90d"
        [pool.store]
        kind = "s3"
        endpoint = "http://localhost:9000"
        bucket = "b"
        prefix = "p/q"
        region = "eu"
        access_key_file = "/etc/hsm/access"
        secret_key_file = "/etc/hsm/secret"
        allow_http = true
        deadline = "5s"
        retries = 0
        rate_limit = "100MiB"
        "#,
    );
    let agent = AgentConfig {
        state_dir: "/state".into(),
        socket: "/s".into(),
        bpf_dir: "/sys/fs/bpf/other".into(),
        log: "debug,hyper=warn".into(),
        log_format: LogFormat::Json,
    };
    assert_eq!(config.agent, agent);
    let limits = Limits {
        recall_memory: ByteSize::mib(64),
        recall_parallel: 8,
        recalls: 20,
        recalls_per_user: 10,
        local_recalls_per_user: Some(3),
        waiting: 1000,
        waiting_per_user: 100,
        bulk_jobs: 3,
        recall_deadline: Duration::from_secs(90),
        release_batch: 10,
    };
    assert_eq!(config.limits, limits);
    let pool = PoolConfig {
        name: "a".into(),
        mount: "/a".into(),
        directories: Subtrees::new(vec!["projects".into(), "media/raw".into()]),
        tier: TierChoice::UserFilter,
        recall: RecallMode::Range,
        range_programs: RangePrograms::Only(vec!["/usr/bin/ffmpeg".into()]),
        whole_programs: WholePrograms(vec!["cpio".into(), "/opt/backup".into()]),
        range_min_size: ByteSize::gib(1),
        early_answer: true,
        emergency_release: false,
        min_size: ByteSize::kib(4),
        compression: Compression::Zstd { level: 19 },
        verify: Verify::Readback,
        marker: "security.bpf.other".into(),
        retention: Duration::from_secs(90 * 86_400),
        store: StoreConfig {
            endpoint: Some("http://localhost:9000".into()),
            bucket: Some("b".into()),
            prefix: Some("p/q".into()),
            region: Some("eu".into()),
            access_key_file: Some("/etc/hsm/access".into()),
            secret_key_file: Some("/etc/hsm/secret".into()),
            allow_http: true,
            deadline: Duration::from_secs(5),
            retries: 0,
            rate_limit: Some(ByteSize::mib(100)),
            ..StoreConfig::of_kind(StoreKind::S3)
        },
    };
    assert_eq!(config.pools, [pool]);
    assert_eq!(config.warnings, []);
}

#[test]
fn a_tier_that_cannot_do_what_the_pool_asks_for_is_an_error() {
    let lsm = |line: &str| with(&format!("tier = \"lsm-filter\"\n{line}"), "");
    assert_says(&lsm("recall = \"range\""), &["pool[0].recall", "whole files", "user-filter"]);
    assert_says(&lsm("early_answer = true"), &["pool[0].early_answer", "marker"]);
    assert_eq!(parse(&lsm("")).pools[0].tier, TierChoice::LsmFilter);
    assert_says(&with("tier = \"best\"", ""), &["pool[0].tier", "auto"]);
}

#[test]
fn a_misspelled_key_gets_line_and_suggestion() {
    assert_says("[agent]\n\nstat_dir = 1\n", &["hsm.toml:3: agent.stat_dir", "`state_dir`"]);
    assert_says(&with("recal = \"whole\"", ""), &["hsm.toml:5: pool[0].recal", "`recall`"]);
    assert_says(&with("", "acces_key = \"x\""), &["store.acces_key", "`access_key_file`"]);
    assert_says("[limit]\nbulk_jobs = 1\n", &["hsm.toml:1: limit:", "section", "`limits`"]);
    assert_says("[agent]\nbulk_jobs = 1\n", &["`bulk_jobs` belongs into [limits]"]);
    assert_says("[agent]\nxyzzy = 1\n", &["unknown key", "docs/CONFIGURATION.md"]);
}

#[test]
fn all_misspelled_keys_are_reported_at_once() {
    assert_eq!(problems("[agent]\nlgo = 1\nsokcet = 2\n[limits]\nbulkjobs = 3\n").len(), 3);
}

#[test]
fn a_section_and_a_value_are_not_confused() {
    assert_says("agent = 1", &["agent", "[agent]"]);
    assert_says("pool = \"x\"", &["[[pool]]"]);
    assert_says("[pool]\nname = \"x\"\n", &["hsm.toml:1", "[[pool]]"]);
    assert_says("[agent.log]\nlevel = \"info\"\n", &["agent.log", "found a section"]);
    assert_says("[[agent]]\nlog = \"info\"\n", &["agent", "[agent]"]);
}

#[test]
fn syntax_errors_have_a_line() {
    assert_says("[agent]\nlog = \n", &["hsm.toml:2", "not TOML"]);
    assert_says("[agent]\nlog = \"a\"\nlog = \"b\"\n", &["hsm.toml:3", "duplicate"]);
}

#[test]
fn a_value_of_the_wrong_form_says_the_right_one() {
    assert_says(
        "[limits]\nrecall_memory = \"many\"\n",
        &["hsm.toml:2: limits.recall_memory", "many", "\"32MiB\""],
    );
    assert_says("[limits]\nrecall_deadline = 5\n", &["hsm.toml:2", "recall_deadline", "\"5m\""]);
    assert_says("[limits]\nrecall_deadline = \"5 parsecs\"\n", &["hsm.toml:2", "\"5m\""]);
    assert_says("[limits]\nbulk_jobs = \"2\"\n", &["hsm.toml:2", "without quotes"]);
    assert_says("[limits]\nbulk_jobs = -1\n", &["hsm.toml:2", "-1"]);
    assert_says("[agent]\nlog_format = \"xml\"\n", &["hsm.toml:2", "xml", "\"text\" or \"json\""]);
    assert_says(&with("recall = \"rnge\"", ""), &["pool[0].recall", "\"whole\" or \"range\""]);
    assert_says(&with("range_programs = \"*\"", ""), &["range_programs", "a list"]);
    assert_says(&s3("").replace("s3", "tape"), &["store.kind", "\"local\" or \"s3\""]);
}

#[test]
fn a_value_out_of_range_is_refused() {
    assert_says("[limits]\nbulk_jobs = 0\n", &["hsm.toml:2", "bulk_jobs", "1 to 256"]);
    assert_says("[limits]\nwaiting = 1000000\n", &["limits.waiting", "1 to 262144"]);
    assert_says("[limits]\nrecall_parallel = 1000\n", &["recall_parallel", "1 to 256"]);
    assert_says("[limits]\nrelease_batch = 0\n", &["release_batch", "1 to 65536"]);
    assert_says("[limits]\nrecall_memory = \"1000KiB\"\n", &["recall_memory", "1MiB"]);
    assert_says("[limits]\nrecall_deadline = \"0s\"\n", &["recall_deadline", "1s"]);
    assert_says("[agent]\nstate_dir = \"var\"\n", &["agent.state_dir", "begin it with /"]);
    assert_says("[agent]\nstate_dir = \"/a/../b\"\n", &["agent.state_dir", ".."]);
    assert_says("[agent]\nlog = \"a=b=c\"\n", &["agent.log", "info"]);
    let long = format!("[agent]\nsocket = \"/{}\"\n", "x".repeat(107));
    assert_says(&long, &["agent.socket", "107"]);
    assert_says(&with("compression = \"zstd\"\ncompression_level = 23", ""), &["1 (fast)"]);
    assert_says(&with("", "deadline = \"1ms\""), &["store.deadline", "10ms"]);
    assert_says(&with("", "retries = 101"), &["store.retries", "0 to 100"]);
    assert_says(&with("", "rate_limit = 0"), &["store.rate_limit", "no limit"]);
}

#[test]
fn pool_names_and_markers_are_checked() {
    for name in ["", "Media", "a b", "a/b", "\u{e4}", &"x".repeat(33)] {
        let text = MINIMAL.replace("\"media\"", &format!("{name:?}"));
        assert_says(&text, &["hsm.toml:3: pool[0].name", "a-z"]);
    }
    for marker in ["", "security.", "user.hsm", "trusted.hsm", "security.a b"] {
        assert_says(&with(&format!("marker = {marker:?}"), ""), &["pool[0].marker", "security."]);
    }
    let taken = with("marker = \"security.capability\"", "");
    assert_says(&taken, &["belongs to the kernel", "security.bpf.hsm"]);
}

#[test]
fn what_is_missing_is_named_all_at_once() {
    let keys: Vec<_> = problems("[[pool]]\n").into_iter().map(|p| p.key).collect();
    assert_eq!(keys, ["pool[0].name", "pool[0].mount", "pool[0].store"]);
    assert_says(&s3(""), &["hsm.toml:5: pool[0].store.bucket", "missing"]);
    assert_says(&MINIMAL.replace("kind = \"local\"\n", ""), &["hsm.toml:5", "store", "`kind`"]);
    assert_says(&MINIMAL.replace("path = ", "# "), &["hsm.toml:5: pool[0].store.path"]);
}

#[test]
fn impossible_combinations_are_refused() {
    let range = with("range_programs = [\"/bin/x\"]", "");
    assert_says(&range, &["hsm.toml:5", "range_programs", "recall = \"range\""]);
    let whole = with("recall = \"whole\"\nrange_min_size = 1", "");
    assert_says(&whole, &["range_min_size", "recall = \"whole\""]);
    let relative = with("recall = \"range\"\nrange_programs = [\"ffmpeg\"]", "");
    assert_says(&relative, &["range_programs", "not an absolute path"]);
    assert_says(&with("compression_level = 3", ""), &["compression_level", "zstd"]);
    let state = format!("[agent]\nstate_dir = \"/srv/media/state\"\n{MINIMAL}");
    assert_says(&state, &["hsm.toml:2: agent.state_dir", "/srv/media"]);
    let root = MINIMAL.replace("\"/srv/media\"", "\"/\"");
    assert_eq!(problems(&root).len(), 2, "state and store are below /");
    let inside = MINIMAL.replace("/mnt/cold", "/srv/media//cold");
    assert_says(&inside, &["hsm.toml:7: pool[0].store.path", "/srv/media"]);
}

#[test]
fn two_pools_share_nothing() {
    let second = |name: &str, mount: &str, store: &str| {
        let other = MINIMAL.replace("\"media\"", &format!("{name:?}"));
        let other = other.replace("\"/srv/media\"", &format!("{mount:?}"));
        format!("{MINIMAL}{}", other.replace("\"/mnt/cold/media\"", &format!("{store:?}")))
    };
    assert_eq!(parse(&second("b", "/srv/b", "/mnt/cold/b")).pools.len(), 2);
    assert_says(&second("media", "/srv/b", "/mnt/cold/b"), &["hsm.toml:10: pool[1].name"]);
    assert_says(&second("b", "/srv/media/", "/mnt/cold/b"), &["hsm.toml:11: pool[1].mount"]);
    for store in ["/mnt/cold/media", "/mnt/cold/media/b", "/mnt/cold"] {
        assert_says(&second("b", "/srv/b", store), &["pool[1].store", "pool[0]"]);
    }
    assert_says(&second("b", "/srv/b", "/srv/media/b"), &["pool[1].store.path", "/srv/media"]);
    let bucket = "endpoint = \"https://h\"\nbucket = \"b\"\nprefix = \"p\"\n";
    let other = s3(bucket).replace("media", "other");
    let twice = format!("{}{}", s3(bucket), other.replace("\"p\"", "\"p/q\""));
    assert_says(&twice, &["pool[1].store", "pool[0]"]);
    parse(&format!("{}{}", s3(bucket), other.replace("\"p\"", "\"pq\"")));
}

#[test]
fn stores_are_checked() {
    let bucket = "bucket = \"b\"\n";
    let plain = s3(&format!("endpoint = \"http://h\"\n{bucket}"));
    assert_says(&plain, &["hsm.toml:9: pool[0].store.endpoint", "allow_http = true"]);
    let secret = s3(&format!("endpoint = \"https://key:secret@h\"\n{bucket}"));
    assert_says(&secret, &["credentials", "secret_key_file"]);
    let unsigned = s3(bucket).replace("secret_key_file = \"/k/secret\"", "");
    assert_says(&unsigned, &["secret_key_file"]);
    let relative = s3(bucket).replace("/k/secret", "k/secret");
    assert_says(&relative, &["secret_key_file", "begin it with /"]);
    assert_says(&s3(&format!("{bucket}path = \"/k\"")), &["store.path", "\"local\""]);
    assert_says(&s3(&format!("{bucket}prefix = \"../a\"")), &["store.prefix"]);
    assert_says(&with("", "region = \"x\""), &["store.region", "\"s3\""]);
    assert_says(&MINIMAL.replace("/mnt/cold", "/mnt/../cold"), &["store.path", ".."]);
    let key = s3(bucket).replace("/k/access", "/srv/media/access");
    assert_says(&key, &["access_key_file", "/srv/media"]);
    let memory = "kind = \"memory\"\n";
    let memory = MINIMAL.replace("kind = \"local\"\npath = \"/mnt/cold/media\"\n", memory);
    assert_says(&memory, &["store.kind", "for tests"]);
}

#[test]
fn doubtful_settings_are_warnings() {
    let warning = |text: &str| {
        let found = parse(text).warnings;
        assert_eq!(found.len(), 1, "{found:#?}");
        found[0].to_string()
    };
    let all = with("recall = \"range\"\nrange_programs = [\"*\"]", "");
    assert!(warning(&all).contains("zeros"));
    assert_eq!(parse(&all).pools[0].range_programs, RangePrograms::All);
    assert!(warning(&with("recall = \"range\"", "")).contains("range_programs"));
    let everybody = with("tier = \"mark-filter\"\nrecall = \"range\"", "");
    assert_eq!(parse(&everybody).warnings, []);
    assert!(warning(&with("marker = \"security.hsm\"", "")).contains("security.bpf."));
    assert!(warning(&with("retention = \"1h\"", "")).contains("snapshots"));
    assert!(warning(&with("", "deadline = \"10m\"")).contains("recall_deadline"));
    assert!(warning("").contains("[[pool]]"));
}

#[test]
fn only_listed_programs_read_ranges() {
    let reads = |list: &str, program: &str, unlisted| {
        let text = with(&format!("recall = \"range\"\nrange_programs = {list}"), "");
        parse(&text).pools[0].lets_read_ranges(Path::new(program), unlisted)
    };
    for unlisted in [false, true] {
        assert!(reads("[\"/usr/bin/ffmpeg\"]", "/usr/bin/ffmpeg", unlisted));
        assert!(!reads("[\"/usr/bin/ffmpeg\"]", "/usr/bin/ffmpeg2", unlisted));
        assert!(reads("[\"*\"]", "/bin/cp", unlisted));
        assert!(!reads("[\"*\"]", "/bin/tar", unlisted));
        // Who is named, is meant.
        assert!(reads("[\"/bin/tar\"]", "/bin/tar", unlisted));
        assert_eq!(reads("[]", "/bin/cp", unlisted), unlisted);
        assert!(!reads("[]", "/bin/tar", unlisted));
    }
}

#[test]
fn explaining_names_the_origin_and_parses_again() {
    for text in [MINIMAL.to_owned(), s3("endpoint = \"https://h\"\nbucket = \"\\\"b\\\\\"\n")] {
        let config = parse(&text);
        let explained = config.explain();
        let again = parse(&explained);
        assert_eq!((&again.agent, &again.limits), (&config.agent, &config.limits));
        assert_eq!(again.pools, config.pools, "{explained}");
    }
    let explained = parse(MINIMAL).explain();
    let line = |start: &str| {
        let found = explained.lines().find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("{start} is missing in:\n{explained}")).to_owned()
    };
    assert!(line("mount = \"/srv/media\"").ends_with("# line 4"));
    assert!(line("recall_memory = \"32MiB\"").ends_with("# default"));
    assert!(line("retention = \"30d\"").ends_with("# default"));
    assert!(line("# rate_limit is not set").ends_with("unlimited"));
    assert!(!explained.contains("bucket"), "of another kind of store");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("hsm.toml");
    let error = Config::load(&path).expect_err("no file").to_string();
    assert!(error.contains(path.to_str().expect("utf-8")), "{error}");
    std::fs::write(&path, b"[agent]\n# caf\xe9\n").expect("write");
    let error = Config::load(&path).expect_err("not UTF-8").to_string();
    assert!(error.contains("hsm.toml:2: not UTF-8"), "{error}");
    std::fs::write(&path, MINIMAL).expect("write");
    assert_eq!(Config::load(&path).expect("good").pools.len(), 1);
}

/// The schema and the structs know the same keys: serde refuses none of the schema, and the
/// schema lists all that serde would take.
#[test]
fn schema_and_structs_agree() {
    for key in KEYS {
        let (section, name) = key.path.rsplit_once('.').expect("a section");
        let header = if section == "pool" { "[[pool]]".into() } else { format!("[{section}]") };
        let pool = if section == "pool.store" { "[[pool]]\n" } else { "" };
        let text = format!("{pool}{header}\n{name} = {{}}\n");
        let error = toml::from_str::<raw::RawConfig>(&text).expect_err("no value is a table");
        assert!(!error.message().contains("unknown field"), "{}: {error}", key.path);
    }
    for section in ["[agent]", "[limits]", "[[pool]]", "[[pool]]\n[pool.store]"] {
        let text = format!("{section}\nxyzzy = 1\n");
        let error = toml::from_str::<raw::RawConfig>(&text).expect_err("unknown key");
        let path = section.rsplit('\n').next().expect("a header");
        let path = path.trim_matches(['[', ']']);
        let is_key = |name: &str| {
            let full = format!("{path}.{name}");
            KEYS.iter().any(|key| key.path == full) || full == "pool.store"
        };
        let names: Vec<_> = error.message().split('`').skip(3).step_by(2).collect();
        assert!(names.len() > 3, "{error}");
        assert!(names.iter().all(|name| is_key(name)), "{names:?}");
    }
}

/// Defaults of the schema are the defaults of the parser.
#[test]
fn schema_defaults_are_the_defaults() {
    let base = parse(MINIMAL);
    let zstd = parse(&with("compression = \"zstd\"", ""));
    let range = parse(&with("recall = \"range\"", ""));
    let server = "endpoint = \"https://h\"\nbucket = \"b\"";
    let server = parse(&s3(server));
    let shown = [base, zstd, range, server].map(|config| config.explain()).join("\n");
    for key in KEYS.iter().filter(|key| !matches!(key.default, "required" | "unset")) {
        let name = key.path.rsplit('.').next().expect("a name");
        let line = format!("{name} = {} ", key.default);
        let found = shown.lines().any(|l| l.starts_with(&line) && l.ends_with("# default"));
        assert!(found, "{line}\nis missing in\n{shown}");
    }
}

proptest! {
    #[test]
    fn any_bytes_parse_without_panic(bytes: Vec<u8>) {
        let _ = Config::parse_bytes(&bytes, "x");
    }

    /// Broken variants of a good file: some bytes replaced, or a piece cut out.
    #[test]
    fn damaged_files_parse_without_panic(
        at: prop::sample::Index, len in 0usize..20, with in "[\\[\\]\\.\"=a-z0-9\u{e4}\n]{0,6}"
    ) {
        let start = at.index(MINIMAL.len());
        let end = (start + len).min(MINIMAL.len());
        let text = format!("{}{with}{}", &MINIMAL[..start], &MINIMAL[end..]);
        if let Err(error) = Config::parse(&text, "x") {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn odd_keys_parse_without_panic(key in "[\\PC]{0,12}") {
        let quoted = toml::Value::from(key.as_str()).to_string();
        let text = format!("{quoted} = 1\n[agent]\n{quoted} = 2\n");
        prop_assert!(Config::parse(&text, "x").is_err());
    }
}

#[test]
fn directories_are_plain_paths_below_the_mount() {
    for (value, said) in [
        ("[\"/abs\"]", "no directory below it"),
        ("[\"\"]", "no directory below it"),
        ("[\".\"]", "no directory below it"),
        ("[\"a/../b\"]", "no directory below it"),
        ("[\"a\", \"a/\"]", "named twice"),
        ("[\"a/b\", \"a\"]", "lies in a"),
        ("\"a\"", "a list of directories below the mount point"),
    ] {
        assert_says(&with(&format!("directories = {value}"), ""), &["directories", said]);
    }
}

#[test]
fn programs_are_known_by_path_or_by_name() {
    let list = WholePrograms(vec!["tar".into(), "/opt/backup".into()]);
    for named in ["/usr/bin/tar", "/home/a/tar", "/opt/backup"] {
        assert!(list.name(Path::new(named)), "{named}");
    }
    for other in ["/usr/bin/bsdtar", "/opt/tar/x", "/usr/opt/backup", "/backup"] {
        assert!(!list.name(Path::new(other)), "{other}");
    }
    assert_says(&with("whole_programs = [\"bin/tar\"]", ""), &["whole_programs", "absolute"]);
    let whole = with("recall = \"whole\"\nwhole_programs = [\"tar\"]", "");
    assert_says(&whole, &["whole_programs", "recall = \"whole\""]);
}
