//! Handles of one recorder. Not the global one: several daemons in one process keep their numbers apart.

use std::marker::PhantomData;

use metrics::{Counter, Gauge, Histogram, Key, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::{
    catalog::{self, COUNTERS, GAUGES, HISTOGRAMS, Named},
    labels::Label,
};

/// The recorder does not filter by it.
const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// Where handles come from. A handle is in every scrape from its registration on.
pub(super) struct Registry(PrometheusRecorder);

/// One handle for each value of a label.
pub(super) struct By<L, H> {
    handles: Vec<H>,
    label: PhantomData<L>,
}

impl<L: Label, H> By<L, H> {
    /// One handle for each value, made in the order of `L::ALL`.
    pub(super) fn new(handle: impl FnMut(L) -> H) -> Self {
        Self { handles: L::ALL.iter().copied().map(handle).collect(), label: PhantomData }
    }

    pub(super) fn get(&self, label: L) -> &H {
        &self.handles[label.index()]
    }
}

impl Registry {
    /// Knows every name of the catalog, and no handle yet.
    pub(super) fn new() -> Self {
        let mut builder = PrometheusBuilder::new();
        for histogram in HISTOGRAMS {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(histogram.name.to_owned()), histogram.buckets)
                .expect("invariant: only an empty list is refused, and every histogram of the catalog has buckets");
        }
        let recorder = builder.build_recorder();
        for (name, help) in COUNTERS {
            recorder.describe_counter((*name).into(), None, (*help).into());
        }
        for (name, help) in GAUGES {
            recorder.describe_gauge((*name).into(), None, (*help).into());
        }
        for catalog::Histogram { name, help, .. } in HISTOGRAMS {
            recorder.describe_histogram((*name).into(), None, (*help).into());
        }
        Self(recorder)
    }

    pub(super) fn recorder(&self) -> &dyn Recorder {
        &self.0
    }

    pub(super) fn handle(&self) -> PrometheusHandle {
        self.0.handle()
    }

    pub(super) fn counter(&self, (name, _): Named, labels: &[(&'static str, &'static str)]) -> Counter {
        self.0.register_counter(&key(name, labels), &METADATA)
    }

    pub(super) fn gauge(&self, (name, _): Named, labels: &[(&'static str, &'static str)]) -> Gauge {
        self.0.register_gauge(&key(name, labels), &METADATA)
    }

    pub(super) fn histogram(&self, of: &catalog::Histogram, labels: &[(&'static str, &'static str)]) -> Histogram {
        self.0.register_histogram(&key(of.name, labels), &METADATA)
    }

    /// A counter for each value of `label`.
    pub(super) fn counters<L: Label>(&self, named: Named, label: &'static str) -> By<L, Counter> {
        By::new(|value: L| self.counter(named, &[(label, value.label())]))
    }

    /// A gauge for each value of `label`.
    pub(super) fn gauges<L: Label>(&self, named: Named, label: &'static str) -> By<L, Gauge> {
        By::new(|value: L| self.gauge(named, &[(label, value.label())]))
    }

    /// A histogram for each value of `label`.
    pub(super) fn histograms<L: Label>(&self, of: &catalog::Histogram, label: &'static str) -> By<L, Histogram> {
        By::new(|value: L| self.histogram(of, &[(label, value.label())]))
    }
}

fn key(name: &'static str, labels: &[(&'static str, &'static str)]) -> Key {
    Key::from_parts(name, labels.iter().map(Into::into).collect::<Vec<metrics::Label>>())
}
