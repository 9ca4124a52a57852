defmodule Barytherium.MetricsTest do
  @moduledoc "integrations/telemetry, without the packages that it needs: stand-ins for them note what they are told."
  use ExUnit.Case, async: false

  alias Barytherium.{Client, Telemetry, TestBroker}

  @moduletag capture_log: true

  setup do
    made = if Code.ensure_loaded?(:"Elixir.Telemetry.Metrics"), do: [], else: [metrics()]
    made = if Code.ensure_loaded?(:telemetry), do: made, else: [telemetry() | made]
    [{module, _binary}] = Code.compile_file("integrations/telemetry/barytherium_metrics.ex")
    :persistent_term.put(__MODULE__, self())

    on_exit(fn ->
      for loaded <- [module | made] do
        :code.purge(loaded)
        :code.delete(loaded)
      end

      :persistent_term.erase(__MODULE__)
    end)

    %{metrics: module}
  end

  defp metrics do
    {:module, module, _binary, _term} =
      defmodule :"Elixir.Telemetry.Metrics" do
        def counter(name, options \\ []), do: {:counter, name, options}
        def sum(name, options \\ []), do: {:sum, name, options}
        def summary(name, options \\ []), do: {:summary, name, options}
        def last_value(name, options \\ []), do: {:last_value, name, options}
      end

    module
  end

  defp telemetry do
    {:module, module, _binary, _term} =
      defmodule :telemetry do
        def execute(event, measurements, metadata) do
          send(:persistent_term.get(Barytherium.MetricsTest), {event, measurements, metadata})
          :ok
        end
      end

    module
  end

  test "each metric is of an event that there is, and of a measurement that it has", %{
    metrics: module
  } do
    {:docs_v1, _line, _language, _format, %{"en" => doc}, _metadata, _docs} =
      Code.fetch_docs(Telemetry)

    for {_kind, name, options} <- module.metrics() do
      {measurement, event} =
        name |> String.split(".") |> Enum.map(&String.to_existing_atom/1) |> List.pop_at(-1)

      assert event in [[:barytherium, :feed] | Telemetry.events()], name
      if event != [:barytherium, :feed], do: assert(doc =~ "`:#{measurement}`")
      for tag <- Keyword.get(options, :tags, []), do: assert(is_atom(tag))
    end

    [failure] =
      for {_kind, "barytherium.client.disconnected.duration", o} <- module.metrics(), do: o

    metadata = %{endpoint: "stomp://h:1", error: Barytherium.Error.new(:closed)}
    assert %{reason: :closed, endpoint: "stomp://h:1"} = failure[:tag_values].(metadata)
  end

  test "the feeds of clients are events", %{metrics: module} do
    broker = start_supervised!(TestBroker)
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    client = start_supervised!({Client, url: url})
    {:ok, _subscription} = Client.subscribe(client, "/topic/a", ack: :auto)
    TestBroker.await_subscription(broker, "/topic/a")
    TestBroker.publish(broker, "/topic/a", "hello")
    assert_receive {:barytherium, :messages, _messages}
    assert module.poll([client, :not_there]) == :ok
    assert_receive {[:barytherium, :feed], measurements, metadata}
    assert %{messages: 1, bytes: 5, gaps: 0, idle: _} = measurements
    # There was no timestamp.
    refute is_map_key(measurements, :lag)
    assert metadata == %{client: client, destination: "/topic/a"}
  end
end
