//! Creates the groups of a run over the HTTP API of the logic tier.

use std::time::Duration;

use crate::{exit::RunError, population::Population};

/// Requests that may be under way at once.
const WORKERS: u32 = 4;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Creates every group of the population.
///
/// # Errors
/// The first refusal or failure, with what the server said.
pub fn create(base: &str, api_token: &str, population: &Population) -> Result<(), RunError> {
    let results: Vec<Result<(), RunError>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS.min(population.groups))
            .map(|worker| scope.spawn(move || create_share(base, api_token, population, worker)))
            .collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, Result<(), RunError>>| {
            worker.join().unwrap_or_else(|_| Err(RunError::aborted("a worker panicked")))
        };
        workers.into_iter().map(join).collect()
    });
    results.into_iter().collect()
}

fn create_share(
    base: &str,
    api_token: &str,
    population: &Population,
    worker: u32,
) -> Result<(), RunError> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .build();
    let agent: ureq::Agent = config.into();
    for group in (worker..population.groups).step_by(WORKERS as usize) {
        let members: Vec<String> =
            population.members(group).map(|user| population.user_id(user)).collect();
        let body = serde_json::json!({
            "group_id": population.group_id(group),
            "name": format!("load group {group}"),
            "members": members,
        });
        let url = format!("{base}/v1/groups");
        let fail = |what: String| RunError::preflight(format!("POST {url}: {what}"));
        let mut response = agent
            .post(&url)
            .header("Authorization", &format!("Bearer {api_token}"))
            .header("Content-Type", "application/json")
            .send(body.to_string())
            .map_err(|error| fail(error.to_string()))?;
        let text = response.body_mut().read_to_string().unwrap_or_default();
        if !response.status().is_success() {
            return Err(fail(format!("{} {}", response.status(), text.trim())));
        }
    }
    Ok(())
}
