//! Threads under the filter, in processes of their own: this test program, started again.

use super::*;

#[test]
fn a_filter_that_refuses_nothing_is_found_out() {
    signals::install().unwrap();
    let allow = sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let found = prove(move |_| vec![allow]);
    assert_eq!(found, Err(FilterError::Ineffective("what it refuses is allowed")));
}

#[test]
fn a_filter_that_does_not_see_where_calls_are_made_is_found_out() {
    signals::install().unwrap();
    let found = prove(|_| program(&[], this_daemon(false)));
    assert_eq!(found, Err(FilterError::Ineffective("it does not see where a call is made")));
}

#[test]
fn a_program_that_the_kernel_does_not_take_is_an_error_with_its_remedy() {
    signals::install().unwrap();
    let error = prove(|_| vec![]).unwrap_err();
    assert_eq!(error, FilterError::Install(InstallError::Install(Errno::EINVAL)));
    assert!(error.remedy().contains("CONFIG_SECCOMP_FILTER"));
}

#[test]
fn what_is_had_here_is_found_fit() {
    assert_eq!(try_filter(), Ok(()));
}
