//! What is wrong with an install, without doing it.

use super::{
    Service,
    failure::{Failure, Reason},
    install, signature, target,
};
use crate::{
    cache::{Dependencies, InstallError, Name},
    code::{Addresses, CodeError, Diagnosis, Finding, Image, Location},
    config::Screen,
    proto::{self, BlobFormat, Severity},
};

/// Problems that an answer holds.
const DIAGNOSTICS_MAX: usize = Diagnosis::PROBLEMS_MAX;

#[derive(Default)]
struct Report {
    diagnostics: Vec<proto::Diagnostic>,
    total: u64,
}

/// Answers all that can be found before memory is taken. `declared`: the signatures of the request.
pub(super) fn answer(
    service: &Service,
    name: &Name,
    request: &proto::InstallRequest,
    format: BlobFormat,
    declared: &[signature::Declaration],
    dependencies: &Dependencies,
) -> proto::InstallResponse {
    let mut report = Report::default();
    let names = request.required_cpu_features.iter().map(String::as_str);
    let missing = service.features.missing_names(names);
    target::failures(missing, target::REQUEST).for_each(|it| report.failure(it, None));
    match parse(service, request, format, dependencies) {
        Ok(image) => report.image(service, image, declared, (name, dependencies)),
        Err(Unparsed::Refused(failure)) => report.failure(failure, None),
        Err(Unparsed::Diagnosed(diagnosis)) => report.diagnosis(diagnosis),
    }
    proto::InstallResponse {
        diagnostics: report.diagnostics,
        diagnostics_total: report.total,
        ..proto::InstallResponse::default()
    }
}

enum Unparsed {
    Refused(Failure),
    Diagnosed(Diagnosis),
}

fn parse(
    service: &Service,
    request: &proto::InstallRequest,
    format: BlobFormat,
    dependencies: &Dependencies,
) -> Result<Image, Unparsed> {
    if format == BlobFormat::Flat {
        return install::parse(service, request, format, dependencies).map_err(Unparsed::Refused);
    }
    install::check_magic(request, format).map_err(Unparsed::Refused)?;
    let (providers, imports) = (dependencies.providers(), service.cache.imports());
    let selection = install::selection(service, request);
    Image::diagnose_elf(&request.blob, &selection, &providers, imports, &service.limits.code)
        .map_err(Unparsed::Diagnosed)
}

impl Report {
    /// Whether there could be room for it, and of the right kind.
    fn fit(&mut self, service: &Service, name: &Name, image: &Image, dependencies: &Dependencies) {
        match service.cache.hold(name, image, dependencies) {
            // Each place of the image that says so is told by the trial of the link.
            Err(InstallError::Link(CodeError::UnsupportedRelocation { .. })) | Ok(()) => {}
            Err(error) => self.failure(error.into(), None),
        }
    }

    fn image(
        &mut self,
        service: &Service,
        mut image: Image,
        declared: &[signature::Declaration],
        (name, dependencies): (&Name, &Dependencies),
    ) {
        let missing = service.features.missing_levels(image.levels_needed());
        target::failures(missing, target::OBJECT).for_each(|it| self.failure(it, None));
        for (symbol, failure) in signature::declare(&mut image, declared) {
            self.failure(failure, Some(&Location { symbol: Some(symbol), ..Location::default() }));
        }
        self.fit(service, name, &image, dependencies);
        if let Some(at) = trial_addresses(service, &image) {
            self.diagnosis(image.diagnose_link(at));
        }
        if service.limits.screen != Screen::Off {
            self.screening(service.limits.screen, &image);
        }
    }

    fn diagnosis(&mut self, diagnosis: Diagnosis) {
        let untold = diagnosis.total - diagnosis.problems.len() as u64;
        for problem in diagnosis.problems {
            let at = problem.location().cloned();
            self.failure(problem.into(), at.as_ref());
        }
        self.total += untold;
    }

    fn screening(&mut self, mode: Screen, image: &Image) {
        let screened = image.screen();
        let severity = if mode == Screen::Reject { Severity::Error } else { Severity::Warning };
        let untold = screened.total - screened.findings.len() as u64;
        screened.findings.into_iter().for_each(|finding| self.push(found(severity, finding)));
        self.total += untold;
    }

    fn failure(&mut self, failure: Failure, at: Option<&Location>) {
        let at = at.cloned().unwrap_or_default();
        self.push(proto::Diagnostic {
            severity: Severity::Error.into(),
            reason: failure.reason.as_str().to_owned(),
            message: failure.message,
            object: at.object.unwrap_or_default(),
            section: at.section.unwrap_or_default(),
            symbol: at.symbol.unwrap_or_default(),
            offset_bytes: at.offset_bytes,
        });
    }

    fn push(&mut self, diagnostic: proto::Diagnostic) {
        self.total += 1;
        if self.diagnostics.len() < DIAGNOSTICS_MAX {
            self.diagnostics.push(diagnostic);
        }
    }
}

/// Where an image would lie; `None` if it would have to lie where the system gives nothing, which is told already.
fn trial_addresses(service: &Service, image: &Image) -> Option<Addresses> {
    let arenas = &service.arenas;
    let low = image.needs_low() && (arenas.low_bytes() > 0 || arenas.low_refused().is_some());
    let at = arenas.possible_addresses(low)?;
    Some(Addresses { code: at.code, rodata: at.rodata, data: at.data })
}

fn found(severity: Severity, finding: Finding) -> proto::Diagnostic {
    proto::Diagnostic {
        severity: severity.into(),
        reason: Reason::ForbiddenInstruction.as_str().to_owned(),
        message: format!("code must not hold: {finding}"),
        symbol: finding.function.into(),
        offset_bytes: Some(finding.function_offset_bytes),
        ..proto::Diagnostic::default()
    }
}
