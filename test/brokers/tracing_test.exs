# The context of a trace goes through every broker.
for kind <- [Barytherium.Brokers.RabbitMQ, Barytherium.Brokers.ActiveMQ] do
  defmodule Module.concat(kind, TracingTest) do
    use Barytherium.TracingCase, async: false

    alias Barytherium.Broker

    @moduletag real_broker: kind.name()

    defmodule Consuming do
      use Barytherium.Consumer, subscribe: "/queue/traced"

      @impl true
      def handle_message(_frame, state), do: {:ack, state}
    end

    setup do
      if missing = unquote(kind).missing(), do: raise(missing)
      broker = Broker.shared!(unquote(kind))
      %{url: "stomp://guest:guest@127.0.0.1:#{broker.port}"}
    end

    test "from a publisher to a consumer", %{url: url} do
      start_supervised!({Consuming, url: url})
      client = start_supervised!({Client, url: url})
      assert Client.publish(client, "/queue/traced", "1", wait: true) == :ok
      published = span("publish /queue/traced")
      assert span("process /queue/traced").parent == published.span
    end
  end
end
