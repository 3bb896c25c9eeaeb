//! Builds components with the ordinary Go client.
//!
//! In: components of the versions file and their Go modules. Out: [`Built`],
//! one a component, its files in the cache under the hash of everything that
//! they are made of. A directory with such a name is complete; a build that
//! was interrupted is begun again, with what Go's own cache kept of it.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::render;
use event::Sink;
use serde::{Deserialize, Serialize};

use crate::versions::{Build, Component};
use crate::{file, tool};

/// Part of the input hash: raise it when the way of building changes.
const FORMAT: u32 = 1;

/// Time between two lines that say what is still being built.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// What the cache holds of one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Built {
    /// Name of the component.
    pub(crate) name: String,
    /// Version of the Go toolchain, such as `go1.26.8`.
    pub(crate) go: String,
    /// The programs.
    pub(crate) files: Vec<BuiltFile>,
    /// All Go modules that are linked in.
    pub(crate) modules: Vec<Module>,
    /// C libraries that are linked in.
    pub(crate) native: Vec<Module>,
    /// Where the files are.
    #[serde(skip)]
    pub(crate) directory: PathBuf,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BuiltFile {
    /// [`Build::output`].
    pub(crate) output: String,
    /// Digest of the content.
    pub(crate) digest: String,
    /// Size in bytes.
    pub(crate) size: u64,
}

/// A dependency.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Module {
    /// Path of the Go module, or name of the C library.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
}

impl Built {
    /// Where `file` is.
    pub(crate) fn path(&self, file: &BuiltFile) -> PathBuf {
        inside(&self.directory, &file.output)
    }
}

/// Everything that the programs of a component are made of.
#[derive(Debug, Clone, Serialize)]
struct Inputs<'a> {
    format: u32,
    version: &'a str,
    builds: &'a [Build],
    /// Digests of the module's files.
    module: BTreeMap<String, String>,
    go: String,
    gcc: Option<String>,
    native: Vec<Module>,
}

impl Inputs<'_> {
    fn hash(&self) -> Result<String> {
        let text = serde_json::to_vec(self)?;
        Ok(oci::Digest::of(&text).hex().to_owned())
    }
}

/// Where components are built.
pub(crate) struct Workshop<'a> {
    /// Directory of the versions file.
    pub(crate) source: &'a Path,
    /// The cache.
    pub(crate) cache: &'a Path,
    /// How many components are built at a time.
    pub(crate) jobs: usize,
    /// Told of progress.
    pub(crate) sink: &'a dyn Sink,
}

/// One component to build.
#[derive(Debug)]
struct Job<'a> {
    component: &'a Component,
    inputs: Inputs<'a>,
    hash: String,
}

impl Workshop<'_> {
    /// The component as it is in the cache, if it is.
    pub(crate) fn cached(&self, component: &Component) -> Result<Option<Built>> {
        let job = self.job(component, &component.builds)?;
        Ok(self.find(&job.hash))
    }

    /// The programs of all `components`, in their order.
    ///
    /// # Errors
    /// When Go or a C compiler is missing, or a build fails: then what else
    /// was being built is finished first, so that the next run finds it.
    pub(crate) fn build(&self, components: &[Component]) -> Result<Vec<Built>> {
        let jobs = components.iter().map(|c| self.job(c, &c.builds));
        self.run(jobs.collect::<Result<_>>()?)
    }

    /// The tools of all `components`, which are no part of the image.
    pub(crate) fn tools(&self, components: &[Component]) -> Result<Vec<Built>> {
        let with_tools = components.iter().filter(|c| !c.tools.is_empty());
        let jobs = with_tools.map(|c| self.job(c, &c.tools));
        self.run(jobs.collect::<Result<_>>()?)
    }

    fn job<'a>(&self, component: &'a Component, builds: &'a [Build]) -> Result<Job<'a>> {
        let inputs = self
            .inputs(component, builds)
            .with_context(|| format!("component {}", component.name))?;
        let hash = inputs.hash()?;
        Ok(Job {
            component,
            inputs,
            hash,
        })
    }

    fn inputs<'a>(&self, component: &'a Component, builds: &'a [Build]) -> Result<Inputs<'a>> {
        let directory = self.source.join(&component.module);
        let mut module = BTreeMap::new();
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if matches!(name.as_str(), "go.mod" | "go.sum") || name.ends_with(".go") {
                module.insert(name, file::digest_file(&path)?.0);
            }
        }
        // Asked inside the module, as its go line may choose a toolchain.
        let go = tool::output(go(&directory, false).args(["env", "GOVERSION"]))?;
        let gcc = match builds.iter().any(|build| build.cgo) {
            true => Some(tool::output(Command::new("gcc").arg("-dumpfullversion"))?),
            false => None,
        };
        let native = component.native.iter().map(|name| {
            let version = tool::output(Command::new("pkg-config").args(["--modversion", name]))
                .with_context(|| format!("{name}: apt-get install {name}-dev"))?;
            Ok(Module {
                name: name.clone(),
                version,
            })
        });
        Ok(Inputs {
            format: FORMAT,
            version: &component.version,
            builds,
            module,
            go,
            gcc,
            native: native.collect::<Result<_>>()?,
        })
    }

    fn directory(&self) -> PathBuf {
        self.cache.join("components")
    }

    /// A complete build of these inputs.
    fn find(&self, hash: &str) -> Option<Built> {
        let directory = self.directory().join(hash);
        let text = std::fs::read(directory.join("built.json")).ok()?;
        let mut built: Built = serde_json::from_slice(&text).ok()?;
        built.directory = directory;
        let whole = built.files.iter().all(|file| {
            std::fs::metadata(built.path(file)).is_ok_and(|metadata| metadata.len() == file.size)
        });
        whole.then_some(built)
    }

    fn run(&self, jobs: Vec<Job<'_>>) -> Result<Vec<Built>> {
        let mut built: Vec<Option<Built>> = jobs.iter().map(|job| self.find(&job.hash)).collect();
        let mut missing: Vec<usize> = (0..jobs.len()).filter(|&i| built[i].is_none()).collect();
        if !missing.is_empty() {
            // The longest first, so that it is not alone at the end.
            missing.sort_by_key(|&i| std::cmp::Reverse(jobs[i].component.seconds));
            self.run_missing(&jobs, missing, &mut built)?;
        }
        Ok(built.into_iter().flatten().collect())
    }

    fn run_missing(
        &self,
        jobs: &[Job<'_>],
        missing: Vec<usize>,
        built: &mut [Option<Built>],
    ) -> Result<()> {
        let total = missing.len();
        let mut left: u64 = missing.iter().map(|&i| jobs[i].component.seconds).sum();
        self.sink.step(&format!(
            "Building {total} components from source, about {} with cold caches",
            seconds(left)
        ));
        let started = Instant::now();
        let queue = Mutex::new(VecDeque::from(missing));
        let (sender, receiver) = mpsc::channel();
        let mut failure = None;
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                let (sender, queue) = (sender.clone(), &queue);
                scope.spawn(move || {
                    let take = || {
                        queue
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .pop_front()
                    };
                    while let Some(i) = take() {
                        // Nobody listens any more only when the scope unwinds.
                        let _ = sender.send((i, None));
                        let _ = sender.send((i, Some(self.make(&jobs[i]))));
                    }
                });
            }
            drop(sender);
            let mut running: BTreeMap<usize, Instant> = BTreeMap::new();
            let mut done = 0;
            loop {
                match receiver.recv_timeout(HEARTBEAT) {
                    Ok((i, None)) => {
                        running.insert(i, Instant::now());
                        let component = jobs[i].component;
                        self.sink.info(&format!(
                            "{} {}: building, about {}",
                            component.name,
                            component.version,
                            seconds(component.seconds)
                        ));
                    }
                    Ok((i, Some(Ok(result)))) => {
                        let component = jobs[i].component;
                        let time = running
                            .remove(&i)
                            .map(|at| at.elapsed())
                            .unwrap_or_default();
                        done += 1;
                        left = left.saturating_sub(component.seconds);
                        built[i] = Some(result);
                        self.sink.info(&format!(
                            "{} {}: built in {} ({done} of {total}, {} so far, at most about {} left)",
                            component.name,
                            component.version,
                            render::duration(time),
                            render::duration(started.elapsed()),
                            seconds(left)
                        ));
                    }
                    Ok((i, Some(Err(error)))) => {
                        running.remove(&i);
                        queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                        let component = jobs[i].component;
                        let context = format!("{} {}", component.name, component.version);
                        failure.get_or_insert(error.context(context));
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        let list: Vec<String> = running
                            .iter()
                            .map(|(&i, at)| {
                                let component = jobs[i].component;
                                format!(
                                    "{} ({} of about {})",
                                    component.name,
                                    render::duration(at.elapsed()),
                                    seconds(component.seconds)
                                )
                            })
                            .collect();
                        self.sink
                            .info(&format!("Still building: {}", list.join(", ")));
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => break,
                }
            }
        });
        failure.map_or(Ok(()), Err)
    }

    fn make(&self, job: &Job<'_>) -> Result<Built> {
        let component = job.component;
        let directory = self.directory().join(&job.hash);
        let temporary = self.directory().join(format!(".tmp-{}", job.hash));
        for old in [&directory, &temporary] {
            if old.exists() {
                std::fs::remove_dir_all(old).with_context(|| old.display().to_string())?;
            }
        }
        let logs = self.cache.join("logs");
        std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
        let log = logs.join(format!("{}.log", component.name));
        file::write(&log, "")?;
        let module = self.source.join(&component.module);
        let mut files = Vec::new();
        let mut modules = Vec::new();
        for build in job.inputs.builds {
            let output = inside(&temporary, &build.output);
            if let Some(parent) = output.parent() {
                std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
            }
            let mut command = go(&module, build.cgo);
            command.args(["build", "-trimpath", "-buildvcs=false", "-ldflags"]);
            command.arg(component.ldflags(build));
            if !build.tags.is_empty() {
                command.args(["-tags", &build.tags.join(",")]);
            }
            command.arg("-o").arg(&output).arg(&build.package);
            tool::run(&mut command, &log)?;
            let linked = tool::output(Command::new("go").args(["version", "-m"]).arg(&output))?;
            modules.extend(linked_modules(&linked));
            let (digest, size) = file::digest_file(&output)?;
            files.push(BuiltFile {
                output: build.output.clone(),
                digest,
                size,
            });
        }
        modules.sort();
        modules.dedup();
        ensure!(
            modules
                .iter()
                .any(|m| m.name == component.requires && m.version == component.version),
            "the programs do not contain {} {}",
            component.requires,
            component.version
        );
        let mut built = Built {
            name: component.name.clone(),
            go: job.inputs.go.clone(),
            files,
            modules,
            native: job.inputs.native.clone(),
            directory: PathBuf::new(),
        };
        file::write(
            &temporary.join("built.json"),
            serde_json::to_vec_pretty(&built)?,
        )?;
        std::fs::rename(&temporary, &directory).with_context(|| directory.display().to_string())?;
        built.directory = directory;
        Ok(built)
    }
}

/// The Go client in a module's directory, deaf to the user's settings that
/// would change the result.
fn go(directory: &Path, cgo: bool) -> Command {
    let mut command = Command::new("go");
    command.current_dir(directory);
    for name in [
        "CGO_CFLAGS",
        "CGO_CPPFLAGS",
        "CGO_CXXFLAGS",
        "CGO_LDFLAGS",
        "CC",
        "GOEXPERIMENT",
        "GODEBUG",
    ] {
        command.env_remove(name);
    }
    command.envs([
        ("CGO_ENABLED", if cgo { "1" } else { "0" }),
        ("GOOS", "linux"),
        ("GOARCH", "amd64"),
        ("GOAMD64", "v1"),
        ("GOWORK", "off"),
        ("GOFLAGS", "-mod=readonly"),
    ]);
    command
}

/// The modules that `go version -m` names; a replacement counts for what it
/// replaces.
fn linked_modules(text: &str) -> Vec<Module> {
    let mut modules: Vec<Module> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let (Some(name), Some(version)) = (words.next(), words.next()) else {
            continue;
        };
        let module = Module {
            name: name.to_owned(),
            version: version.to_owned(),
        };
        match kind {
            "dep" => modules.push(module),
            // The module of the program itself, where it is not ours.
            "mod" if module.version != "(devel)" => modules.push(module),
            "=>" => {
                modules.pop();
                modules.push(module);
            }
            _ => {}
        }
    }
    modules
}

fn inside(directory: &Path, output: &str) -> PathBuf {
    directory.join("root").join(output.trim_start_matches('/'))
}

fn seconds(count: u64) -> String {
    render::duration(Duration::from_secs(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(builds: &[Build]) -> Inputs<'_> {
        Inputs {
            format: FORMAT,
            version: "v1.0.0",
            builds,
            module: BTreeMap::from([("go.mod".to_owned(), "sha256:1".to_owned())]),
            go: "go1.26.8".into(),
            gcc: None,
            native: Vec::new(),
        }
    }

    #[test]
    fn the_hash_changes_with_every_input_and_with_nothing_else() {
        let builds = [Build {
            package: ".".into(),
            output: "/usr/bin/x".into(),
            cgo: false,
            tags: Vec::new(),
            ldflags: String::new(),
        }];
        let hash = inputs(&builds).hash().unwrap();
        assert_eq!(hash, inputs(&builds).hash().unwrap());
        assert_eq!(hash.len(), 64);
        let mut other_builds = builds.clone();
        other_builds[0].ldflags = "-X a=b".into();
        let mut tagged = builds.clone();
        tagged[0].tags.push("netgo".into());
        let mut others = vec![inputs(&other_builds), inputs(&tagged)];
        let mut change = |f: &dyn Fn(&mut Inputs<'_>)| {
            let mut changed = inputs(&builds);
            f(&mut changed);
            others.push(changed);
        };
        change(&|i| i.version = "v1.0.1");
        change(&|i| i.go = "go1.26.9".into());
        change(&|i| i.gcc = Some("12.2.0".into()));
        change(&|i| {
            i.module.insert("go.mod".into(), "sha256:2".into());
        });
        change(&|i| {
            i.module.insert("main.go".into(), "sha256:1".into());
        });
        change(&|i| {
            i.native.push(Module {
                name: "libseccomp".into(),
                version: "2.5.4".into(),
            })
        });
        let mut hashes: Vec<String> = others.iter().map(|i| i.hash().unwrap()).collect();
        hashes.push(hash);
        hashes.sort();
        let count = hashes.len();
        hashes.dedup();
        assert_eq!(hashes.len(), count);
    }

    #[test]
    fn replaced_modules_are_listed_as_what_replaces_them() {
        let text = "x: go1.26.8\n\tpath\tlocal/x\n\tmod\tlocal/x\t(devel)\t\n\
                    \tmod\tm.org/m\tv1.1.0\th1:z=\n\
                    \tdep\ta.org/a\tv1.0.0\th1:x=\n\
                    \tdep\tb.org/b\tv0.0.0\n\t=>\tb.org/b\tv0.37.2\th1:y=\n\
                    \tbuild\t-trimpath=true\n";
        let module = |name: &str, version: &str| Module {
            name: name.into(),
            version: version.into(),
        };
        assert_eq!(
            linked_modules(text),
            [
                module("m.org/m", "v1.1.0"),
                module("a.org/a", "v1.0.0"),
                module("b.org/b", "v0.37.2")
            ]
        );
    }

    #[test]
    fn a_build_with_a_missing_or_cut_file_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let workshop = Workshop {
            source: dir.path(),
            cache: dir.path(),
            jobs: 1,
            sink: &event::Discard,
        };
        let entry = dir.path().join("components/abc");
        let program = entry.join("root/usr/bin/x");
        std::fs::create_dir_all(program.parent().unwrap()).unwrap();
        file::write(&program, "12345").unwrap();
        let built = Built {
            name: "x".into(),
            go: "go1.26.8".into(),
            files: vec![BuiltFile {
                output: "/usr/bin/x".into(),
                digest: file::digest(b"12345"),
                size: 5,
            }],
            modules: Vec::new(),
            native: Vec::new(),
            directory: entry.clone(),
        };
        assert_eq!(workshop.find("abc"), None);
        file::write(
            &entry.join("built.json"),
            serde_json::to_vec(&built).unwrap(),
        )
        .unwrap();
        assert_eq!(workshop.find("abc"), Some(built));
        file::write(&program, "1234").unwrap();
        assert_eq!(workshop.find("abc"), None);
    }
}
