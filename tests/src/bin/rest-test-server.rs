//! Serves the REST API of the tests until it is interrupted; see `weir_tests::rest_server`.
//! The only argument is the number of records (default 1,000).

use weir_tests::rest_server::RestServer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let records = match std::env::args().nth(1) {
        Some(records) => records.parse()?,
        None => 1000,
    };
    let server = RestServer::start(records).await?;
    println!("{}", server.url());
    tokio::signal::ctrl_c().await?;
    Ok(())
}
