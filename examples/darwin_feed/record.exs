# Made feed.rec: `mix run examples/darwin_feed/record.exs` in the root of the repository. A broker in this VM publishes
# invented messages, twice a second, and they are recorded.
alias Barytherium.{Record, TestBroker}

Code.require_file("../../demo/trains.ex", __DIR__)

{:ok, broker} = TestBroker.start_link(like: :activemq)
path = Path.join(__DIR__, "feed.rec")
for file <- [path, path <> ".index"], do: File.rm(file)
destination = "/topic/darwin.pushport-v16"
messages = Enum.take(Demo.Trains.messages(), 100)

spawn_link(fn ->
  TestBroker.await_subscription(broker, destination)

  for {body, n} <- Enum.with_index(messages) do
    train = Demo.Trains.uid(:zlib.gunzip(body))
    # Two numbers are missing, as if messages had been lost.
    number = if n < 8, do: n, else: n + 2
    headers = [{"MessageType", "TS"}, {"SequenceNumber", "#{number}"}, {"train", train}]
    TestBroker.publish(broker, destination, body, headers)
    Process.sleep(500)
  end
end)

url = "stomp://127.0.0.1:#{TestBroker.port(broker)}#{destination}"
0 = Record.run([url, path, "--count", "#{length(messages)}"], "record")
