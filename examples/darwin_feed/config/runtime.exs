import Config

host =
  System.get_env("STOMP_HOST") ||
    raise """
    STOMP_HOST is not set. Start a broker in the root of the repository:

        mix run examples/darwin_feed/feed.exs

    Then run this here:

        STOMP_HOST=localhost mix run --no-halt
    """

config :darwin_feed,
  broker: [
    url: "stomp://#{host}:#{System.get_env("STOMP_PORT", "61613")}",
    login: System.get_env("STOMP_LOGIN", "guest"),
    # A function, so that the passcode does not stand in the configuration.
    passcode: {System, :get_env, ["STOMP_PASSCODE", "guest"]}
  ]
