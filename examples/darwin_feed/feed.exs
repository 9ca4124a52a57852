# A feed like Darwin's: twice a second the same message, compressed.
alias Barytherium.TestBroker

port = String.to_integer(System.get_env("STOMP_PORT", "61613"))
xml = __DIR__ |> Path.join("message.xml") |> File.read!()
{:ok, _broker} = TestBroker.start_link(port: port, rate: 2, body: :zlib.gzip(xml))
IO.puts("A feed listens on port #{port}.")
Process.sleep(:infinity)
