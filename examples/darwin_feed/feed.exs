# A feed like Darwin's: plays what record.exs has recorded, as fast as it was.
alias Barytherium.TestBroker

port = String.to_integer(System.get_env("STOMP_PORT", "61613"))

{:ok, _broker} =
  TestBroker.start_link(port: port, replay: Path.join(__DIR__, "feed.rec"), speed: 1)

IO.puts("A feed listens on port #{port}.")
Process.sleep(:infinity)
