defmodule Barytherium.FailoverTest do
  @moduledoc "Two brokers that know nothing of each other, and clients that know both."
  use ExUnit.Case, async: false

  alias Barytherium.Brokers.ActiveMQ
  alias Barytherium.{Broker, Client}

  @moduletag real_broker: :activemq
  @moduletag capture_log: true

  defmodule Consumer do
    use Barytherium.Consumer, subscribe: "/queue/a"

    @impl true
    def handle_message(frame, test) do
      send(test, {:handled, frame.body})
      {:ack, test}
    end
  end

  test "clients go to the second broker when the first fails, and back when the second does" do
    if missing = ActiveMQ.missing(), do: raise(missing)
    [first, second] = for _n <- 1..2, do: Broker.start!(ActiveMQ)
    on_exit(fn -> Enum.each([first, second], &Broker.stop/1) end)
    url = &"stomp://127.0.0.1:#{&1.port}"
    opts = [urls: [url.(first), url.(second)], backoff: {50, 200}]
    {:ok, consumer} = Consumer.start_link([init_arg: self()] ++ opts)
    publisher = start_supervised!({Client, opts})
    round_trip(publisher, "1")
    assert Client.status(publisher).endpoint == url.(first)

    Broker.kill(first)
    round_trip(publisher, "2")
    assert Client.status(publisher).endpoint == url.(second)

    first = Broker.start_again!(first)
    on_exit(fn -> Broker.stop(first) end)
    Broker.kill(second)
    round_trip(publisher, "3")
    assert Client.status(publisher).endpoint == url.(first)
    Supervisor.stop(consumer)
  end

  # The consumer may be at the other broker for a moment, so the message is published until it arrives.
  defp round_trip(publisher, body) do
    Client.publish(publisher, "/queue/a", body, wait: true)

    receive do
      {:handled, ^body} -> :ok
      {:handled, _earlier} -> round_trip(publisher, body)
    after
      1_000 -> round_trip(publisher, body)
    end
  end
end
