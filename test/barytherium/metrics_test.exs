defmodule Barytherium.MetricsTest do
  @moduledoc "integrations/telemetry, without the packages that it needs: stand-ins for them note what they are told."
  use ExUnit.Case, async: false

  alias Barytherium.{Client, Consumer, ReceiverCase, Telemetry, TestBroker}

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

    events = for event <- Telemetry.events(), do: Enum.map(event, &to_string/1)

    for {_kind, name, options} <- module.metrics() do
      {measurement, event} = name |> String.split(".") |> List.pop_at(-1)
      assert event in [["barytherium", "feed"] | events], name
      if event != ["barytherium", "feed"], do: assert(doc =~ "`:#{measurement}`")
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
    # Only handlers have delays.
    refute is_map_key(measurements, :to_start_p50)
  end

  defmodule Trains do
    use Barytherium.Consumer, subscribe: "/queue/trains"

    @impl true
    def handle_message(_frame, state), do: {:ack, state}
  end

  # A consumer with a name, whose first message is acknowledged.
  defp consumer do
    broker = start_supervised!(TestBroker)
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    start_supervised!({Trains, url: url, name: Trains})
    handled(broker, 1)
    {broker, hd(Consumer.clients(Trains))}
  end

  # The handler notes the time after the broker has the acknowledgement.
  defp handled(broker, count) do
    TestBroker.publish(broker, "/queue/trains", "1A23")
    TestBroker.assert_acked(broker, "/queue/trains", "1A23", 5_000)

    ReceiverCase.eventually(fn ->
      [%{to_ack: times}] = Trains |> Consumer.clients() |> hd() |> Client.feeds()
      Enum.sum(for {_time, n} <- times, do: n) == count
    end)
  end

  test "the delays are those since the last event", %{metrics: module} do
    {broker, client} = consumer()
    module.poll([client])
    assert_receive {[:barytherium, :feed], first, _metadata}
    assert %{to_start_p50: start, to_start_p99: start, to_ack_p99: ack} = first
    assert is_integer(start) and start <= ack
    # Nothing has come meanwhile.
    module.poll([client])
    assert_receive {[:barytherium, :feed], second, _metadata}
    refute is_map_key(second, :to_start_p50)
    handled(broker, 2)
    module.poll([client])
    assert_receive {[:barytherium, :feed], %{to_start_p50: _}, %{client: ^client}}
    module.poll([], [Trains, :not_there])
    assert_receive {[:barytherium, :feed], %{messages: 2}, %{client: Trains}}
  end

  # Stands for `Phoenix.LiveDashboard.PageBuilder`: a template is its text.
  defp page do
    {:module, builder, _binary, _term} =
      defmodule :"Elixir.Phoenix.LiveDashboard.PageBuilder" do
        @callback init(term()) :: term()
        @callback menu_link(map(), map()) :: term()
        @callback mount(map(), map(), term()) :: term()
        @callback render(map()) :: term()

        defmacro __using__(_opts) do
          quote do
            @behaviour unquote(__MODULE__)
            import unquote(__MODULE__)
          end
        end

        defmacro sigil_H({:<<>>, _meta, [text]}, _modifiers) do
          quote do
            _used = var!(assigns)
            unquote(text)
          end
        end

        def assign(socket, values), do: Map.merge(socket, Map.new(values))
      end

    [{page, _binary}] = Code.compile_file("integrations/live_dashboard/barytherium_page.ex")

    on_exit(fn ->
      for module <- [page, builder], do: :code.delete(module) && :code.purge(module)
    end)

    page
  end

  test "the page of LiveDashboard has a row for each subscription, and a column for each of its values" do
    page = page()
    {broker, _client} = consumer()

    {:ok, session, application: :barytherium} =
      page.init(consumers: [Trains], clients: [:not_there])

    # It is kept by the browser.
    assert session == session |> :erlang.term_to_binary() |> :erlang.binary_to_term([:safe])
    assert page.menu_link(session, %{applications: [:barytherium]}) == {:ok, "STOMP"}
    assert page.menu_link(session, %{applications: []}) == :skip
    {:ok, %{session: ^session}} = page.mount(%{}, session, %{})

    params = %{sort_by: :messages, sort_dir: :desc, limit: 50}
    assert {[row], 1} = page.fetch(session, params, node())
    assert %{destination: "/queue/trains", messages: 1, health: "well", name: name} = row
    assert name =~ "Trains"
    assert row.to_start =~ ~r/^\d+, \d+$/ and row.to_ack =~ ~r/^\d+, \d+$/

    columns =
      for [_all, field] <- Regex.scan(~r/field=\{:(\w+)\}/, page.render(%{})),
          do: String.to_existing_atom(field)

    assert Enum.sort(columns) == Enum.sort(Map.keys(row))

    stop_supervised!(TestBroker)

    ReceiverCase.eventually(fn ->
      match?({[%{health: "not connected"}], 1}, page.fetch(session, params, node()))
    end)

    refute Process.alive?(broker)
    stop_supervised!(Trains)
    assert page.fetch(session, params, node()) == {[], 0}
  end
end
