//! A whole [`Report`] from the model and from what only the edges know.

use std::collections::{BTreeMap, BTreeSet};

use memwatch_common::{Counter, Domain};

use super::counts::{Counting, SiteId};
use super::group::{QueryError, rows_by_site};
use super::health::{Notice, health};
use super::processes::{Instance, totals};
use super::query::Query;
use super::report::{Host, Kind, Options, Overhead, Probes, Process, Report, Row, SCHEMA, Totals};
use super::state::{Baseline, Model};
use crate::symbolize::names::StackNames;

/// What the model does not know: the clock, the host, the settings of the recording, and what the edges measured.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    pub kind: Kind,
    /// RFC 3339.
    pub time: String,
    /// RFC 3339.
    pub since: String,
    pub interval_seconds: f64,
    pub host: Host,
    pub version: String,
    pub sample_bytes: u64,
    pub follow: bool,
    pub max_depth: u32,
    /// What is recorded; other domains are left out of a process's totals instead of shown as 0.
    pub domains: Vec<Domain>,
    pub probes: Probes,
    /// `hits` and `kernel_map_bytes` are filled in from the model.
    pub overhead: Overhead,
    pub notices: Vec<Notice>,
    /// How CPython is watched, where that is known.
    pub python: Option<&'static str>,
}

/// `now_ns` is on the clock of the samples.
pub fn report(
    model: &Model,
    query: &Query,
    names: &mut dyn StackNames,
    baseline: Option<&Baseline>,
    now_ns: u64,
    meta: &Meta,
) -> Result<Report, QueryError> {
    let (report, _) = report_by_site(model, query, names, baseline, now_ns, meta)?;
    Ok(report)
}

/// The same, and for each row the site that it is about: of several, the one that holds most.
pub fn report_by_site(
    model: &Model,
    query: &Query,
    names: &mut dyn StackNames,
    baseline: Option<&Baseline>,
    now_ns: u64,
    meta: &Meta,
) -> Result<(Report, Vec<SiteId>), QueryError> {
    let (rows, total_rows) = rows_by_site(model, query, names, baseline, now_ns)?;
    let (sites, rows): (Vec<SiteId>, Vec<Row>) = rows.into_iter().unzip();
    let overhead = Overhead {
        hits: model.counters()[Counter::Hits as usize],
        kernel_map_bytes: model.kernel_map_bytes(),
        ..meta.overhead.clone()
    };
    let limits = model.limits().clone();
    let report = Report {
        schema: SCHEMA.to_owned(),
        kind: meta.kind,
        time: meta.time.clone(),
        since: meta.since.clone(),
        watched_seconds: now_ns.saturating_sub(model.since_ns()) as f64 / 1e9,
        interval_seconds: meta.interval_seconds,
        tick: model.tick(),
        host: meta.host.clone(),
        version: meta.version.clone(),
        options: options(model, query, meta),
        health: health(
            model.counters(),
            model.undecoded(),
            limits,
            meta.probes.clone(),
            overhead,
            &meta.notices,
        ),
        processes: processes(model, query, meta),
        rows,
        total_rows,
        findings: Vec::new(),
    };
    Ok((report, sites))
}

fn options(model: &Model, query: &Query, meta: &Meta) -> Options {
    let counted_so = |counting| -> Vec<String> {
        let found: BTreeSet<Domain> = model
            .sites()
            .filter(|(id, _)| id.counting == counting && query.wants(id.domain))
            .map(|(id, _)| id.domain)
            .collect();
        found.iter().map(|domain| domain.name().to_owned()).collect()
    };
    let domains = meta.domains.iter().filter(|domain| query.wants(**domain));
    Options {
        group_by: query.group_by.name().to_owned(),
        sort: query.sort.name().to_owned(),
        view: query.view.name().to_owned(),
        cumulative: query.cumulative,
        sample_bytes: meta.sample_bytes,
        min_size: query.min_size,
        max_size: query.max_size,
        older_than_seconds: query.older_than.map(|age| age.as_secs_f64()),
        include: query.include.clone(),
        exclude: query.exclude.clone(),
        domains: domains.map(|domain| domain.name().to_owned()).collect(),
        estimated_age_seconds: counted_so(Counting::Pools)
            .first()
            .and_then(|_| model.pools_age_ns())
            .map(|age| age as f64 / 1e9),
        estimated: counted_so(Counting::Pools),
        allocated_only: counted_so(Counting::Allocations),
        follow: meta.follow,
        max_depth: meta.max_depth,
        limit: query.limit as u64,
        python: meta.python.map(str::to_owned),
    }
}

/// In the order of their instance numbers, which is the order in which they were first seen.
fn processes(model: &Model, query: &Query, meta: &Meta) -> Vec<Process> {
    let known = model
        .processes()
        .iter()
        .filter_map(|(number, instance)| Some((number, instance, instance.pid?)));
    known
        .map(|(number, instance, pid)| process(model, query, meta, number, instance, pid))
        .collect()
}

fn process(model: &Model, query: &Query, meta: &Meta, number: u32, instance: &Instance, pid: u32) -> Process {
    let facts = instance.facts.clone();
    Process {
        pid,
        ppid: facts.ppid,
        start_time: facts.start_time,
        comm: facts.comm,
        exe: facts.exe,
        cmdline: facts.cmdline,
        cgroup: facts.cgroup,
        container: facts.container,
        pod: facts.pod,
        runtimes: facts.runtimes,
        rss_bytes: facts.rss_bytes,
        peak_rss_bytes: facts.peak_rss_bytes,
        exited: instance.exited,
        exit: instance.exit,
        replaced: instance.replaced,
        totals: domain_totals(model, query, meta, number, instance),
        inherited: instance.inherited(),
        allocator_mapped_bytes: model.allocator_mapped_bytes(number),
    }
}

fn domain_totals(
    model: &Model,
    query: &Query,
    meta: &Meta,
    number: u32,
    instance: &Instance,
) -> BTreeMap<String, Totals> {
    let wanted = meta.domains.iter().filter(|domain| query.wants(**domain));
    let of = |domain: &Domain| match domain {
        Domain::Native => instance.native_totals(),
        Domain::Mmap => {
            let untracked = model.untracked_unmaps(number);
            Totals {
                untracked_frees: untracked.calls,
                untracked_freed_bytes: Some(untracked.bytes),
                ..totals(&instance.counts[Domain::Mmap as usize])
            }
        }
        python => Totals {
            untracked_freed_bytes: Some(0),
            ..totals(&instance.counts[*python as usize])
        },
    };
    wanted
        .map(|domain| (domain.name().to_owned(), of(domain)))
        .collect()
}

#[cfg(test)]
mod tests {
    use memwatch_common::{Event, EventKind, ProcessState};

    use super::super::processes::ProcessFacts;
    use super::super::testing::{SECOND, blocks, key, sample};
    use super::*;
    use crate::collect::sample::Sample;
    use crate::symbolize::names::StackTable;

    fn meta() -> Meta {
        Meta {
            kind: Kind::Top,
            time: "2026-01-02T03:04:10Z".into(),
            since: "2026-01-02T03:04:00Z".into(),
            interval_seconds: 1.0,
            domains: vec![Domain::Native, Domain::Mmap],
            follow: true,
            max_depth: 127,
            ..Meta::default()
        }
    }

    fn model() -> Model {
        let mut model = Model::new();
        let state = ProcessState {
            untracked_frees: 4,
            untracked_freed_bytes: 64,
            failed_allocations: 1,
            inherited_objects: 2,
            ..ProcessState::new(1, 0)
        };
        let unmap = Event {
            kind: EventKind::Unmap as u32,
            instance: 1,
            a: 4096,
            ..Event::ZERO
        };
        let mut first = sample(0)
            .site(key(1, Domain::Native, 9), blocks(10, 3, 1))
            .event(unmap);
        first.processes.push((100, state));
        first.counters[Counter::Hits as usize] = 55;
        model.apply(Sample {
            kernel_map_bytes: Some(7),
            ..first
        });
        model.describe(
            1,
            ProcessFacts {
                comm: "server".into(),
                rss_bytes: Some(9),
                ..ProcessFacts::default()
            },
        );
        model
    }

    #[test]
    fn a_report_has_everything_that_views_draw_from() {
        let query = Query::default();
        let report = report(
            &model(),
            &query,
            &mut StackTable::new(),
            None,
            110 * SECOND,
            &meta(),
        )
        .unwrap();
        assert_eq!(
            (report.schema.as_str(), report.tick, report.watched_seconds),
            (SCHEMA, 0, 10.0)
        );
        assert_eq!((report.rows.len(), report.total_rows), (1, 1));
        assert_eq!(
            (report.options.group_by.as_str(), report.options.limit),
            ("traceback", 10)
        );
        assert_eq!(report.options.domains, ["native", "mmap"]);
        assert_eq!(
            (
                report.health.overhead.hits,
                report.health.overhead.kernel_map_bytes
            ),
            (55, Some(7))
        );
        let process = &report.processes[0];
        assert_eq!(
            (process.pid, process.comm.as_str(), process.rss_bytes),
            (100, "server", Some(9))
        );
        assert_eq!(process.inherited.unwrap().objects, 2);
        assert_eq!(process.totals.keys().collect::<Vec<_>>(), ["mmap", "native"]);
        let native = &process.totals["native"];
        assert_eq!(
            (
                native.inuse_objects,
                native.untracked_frees,
                native.failed_allocations
            ),
            (2, 4, 1)
        );
        assert_eq!(process.totals["mmap"].untracked_freed_bytes, Some(4096));
    }

    #[test]
    fn domains_that_are_not_asked_for_are_left_out() {
        let query = Query {
            domains: vec![Domain::Mmap],
            ..Query::default()
        };
        let report = report(
            &model(),
            &query,
            &mut StackTable::new(),
            None,
            110 * SECOND,
            &meta(),
        )
        .unwrap();
        assert!(report.rows.is_empty());
        assert_eq!(report.processes[0].totals.keys().collect::<Vec<_>>(), ["mmap"]);
    }

    #[test]
    fn a_process_of_which_no_pid_is_known_is_not_listed() {
        let mut model = model();
        model.apply(
            sample(1)
                .site(key(5, Domain::Native, 9), blocks(10, 3, 1))
                .alive(100, 1),
        );
        let report = report(
            &model,
            &Query::default(),
            &mut StackTable::new(),
            None,
            110 * SECOND,
            &meta(),
        )
        .unwrap();
        assert_eq!(report.processes.len(), 1);
        assert_eq!(
            (report.rows.len(), report.rows[0].pid, report.rows[1].pid),
            (2, Some(100), None)
        );
    }
}
