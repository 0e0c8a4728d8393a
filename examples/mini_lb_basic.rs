//! tmp
use mini_lb::{MiniLbConfig, MiniLoadBalancer};
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let config = MiniLbConfig::new(
        "127.0.0.1".into(),
        8080,
        vec![("http://127.0.0.1:31000".into(), Some(31900))],
        vec!["http://127.0.0.1:32000".into()],
        1800,
    );
    MiniLoadBalancer::new(config)?.start().await?;
    Ok(())
}
