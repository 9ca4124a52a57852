defmodule Barytherium.RestartTest do
  @moduledoc "What a receipt is worth: messages that a broker confirmed, after it was started again."
  use ExUnit.Case, async: true

  alias Barytherium.Brokers.{ActiveMQ, RabbitMQ}
  alias Barytherium.{Broker, Client}

  @moduletag capture_log: true
  @moduletag timeout: 120_000

  # What every broker forgets, and what it may keep: ActiveMQ writes some messages all the same when it stops in order.
  @transient "transient"

  for kind <- [RabbitMQ, ActiveMQ], signal <- ["TERM", "KILL"] do
    @tag real_broker: kind.name()
    test "#{kind.name()} still has a message after SIG#{signal}" do
      kind = unquote(kind)
      if missing = kind.missing(), do: raise(missing)
      broker = kind |> Broker.prepare!() |> durable() |> Broker.start_again!()
      on_exit(fn -> Broker.stop(broker) end)
      publish(broker)

      Broker.end!(broker, unquote(signal))
      broker = Broker.start_again!(broker)
      on_exit(fn -> Broker.stop(broker) end)

      client = client(broker)
      {:ok, _subscription} = Client.subscribe(client, "/queue/a", ack: :auto)
      assert bodies(6) == ["many 1", "many 2", "one", "own header", "transaction", "urgent"]
      refute_receive {:barytherium, :messages, _transient}, 300
    end
  end

  defp durable(%{directory: directory} = broker) do
    path = Path.join(directory, "activemq.xml")

    with {:ok, text} <- File.read(path),
         do:
           File.write!(path, String.replace(text, ~s(persistent="false"), ~s(persistent="true")))

    broker
  end

  defp publish(broker) do
    client = client(broker)
    :ok = Client.publish(client, "/queue/a", "one")
    :ok = Client.publish(client, "/queue/a", "urgent", headers: [{"priority", "9"}])
    :ok = Client.publish_many(client, [{"/queue/a", "many 1"}, {"/queue/a", "many 2"}])

    :ok =
      Client.publish(client, "/queue/a", "own header",
        headers: [{"persistent", "true"}],
        persistent: false
      )

    {:ok, :ok} =
      Client.transaction(client, fn tx -> Client.publish(tx, "/queue/a", "transaction") end)

    :ok = Client.publish(client, "/queue/a", @transient, persistent: false)

    {:ok, :ok} =
      Client.transaction(client, fn tx ->
        Client.publish(tx, "/queue/a", @transient, headers: [{"persistent", "false"}])
      end)

    Client.close(client)
  end

  defp client(broker) do
    url = "stomp://guest:guest@127.0.0.1:#{broker.port}"
    client = start_supervised!({Client, url: url}, id: make_ref())
    # A broker that has just opened its port may still refuse.
    :ok = Client.publish(client, "/topic/nobody", "", wait: true, timeout: 60_000)
    client
  end

  defp bodies(count), do: count |> bodies([]) |> Enum.sort()
  defp bodies(count, bodies) when count <= 0, do: bodies

  defp bodies(count, bodies) do
    assert_receive {:barytherium, :messages, {frames, _subscription}}, 10_000
    bodies(count - length(frames), bodies ++ Enum.map(frames, & &1.body))
  end
end
