# A broker for the examples. It sends a random number to /queue/orders five times a second.
alias Barytherium.TestBroker

port = String.to_integer(System.get_env("STOMP_PORT", "61613"))
{:ok, broker} = TestBroker.start_link(port: port)
IO.puts("A broker listens on port #{port}.")

Enum.each(Stream.interval(200), fn _tick ->
  TestBroker.publish(broker, "/queue/orders", to_string(:rand.uniform(1_000)))
end)
