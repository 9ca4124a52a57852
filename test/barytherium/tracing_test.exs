defmodule Barytherium.TracingTest do
  @moduledoc "Traces from who publishes to who consumes."
  use Barytherium.TracingCase, async: false

  alias Barytherium.TestBroker

  defmodule Forwarding do
    use Barytherium.Consumer, subscribe: "/queue/a"

    @impl true
    def handle_message(%{body: "bad"}, _client), do: raise("hunter2")

    def handle_message(%{body: body}, client) do
      :ok = Client.publish(client, "/queue/b", body)
      {:ack, client}
    end
  end

  defmodule Batches do
    use Barytherium.Consumer, subscribe: "/queue/a", batch_size: 3, batch_timeout: 60_000

    @impl true
    def handle_batch(_frames, state), do: {:ack, state}
  end

  setup do
    broker = start_supervised!(TestBroker)
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    client = start_supervised!({Client, url: url})
    %{broker: broker, url: url, client: client}
  end

  test "a trace goes through a consumer that publishes", %{
    url: url,
    client: client,
    broker: broker
  } do
    start_supervised!({Forwarding, url: url, init_arg: client})
    assert Client.publish(client, "/queue/a", "1", wait: true) == :ok
    published = span("publish /queue/a")
    forwarded = span("publish /queue/b")
    processed = span("process /queue/a")
    assert published.parent == :undefined
    assert processed.parent == published.span
    assert forwarded.parent == processed.span

    assert [trace] =
             for(
               %{span: {trace, _id}} <- [published, forwarded, processed],
               uniq: true,
               do: trace
             )

    assert processed.reports == [attributes: %{"barytherium.result" => :ack}]
    assert %{kind: :producer, attributes: attributes} = published.opts
    assert attributes["messaging.destination.name"] == "/queue/a"
    frame = TestBroker.assert_published(broker, "/queue/b", "1")
    assert Frame.header(frame, "traceparent") == "00-#{trace}-#{elem(forwarded.span, 1)}-01"
    # Nothing is left in this process.
    assert apply(:otel_ctx, :get_current, []) == %{}
  end

  test "a callback that raises, and a message that cannot be sent", %{url: url, client: client} do
    start_supervised!({Forwarding, url: url, init_arg: client})
    :ok = Client.publish(client, "/queue/a", "bad", wait: true)
    span("publish /queue/a")
    assert [{:status, {:error, text}}, {:exception, :error}] = span("process /queue/a").reports
    refute text =~ "hunter2"
    stop_supervised!(Client)
    client = start_supervised!({Client, url: "stomp://127.0.0.1:1"})
    assert {:error, _error} = Client.publish(client, "/queue/a", "1", timeout: 10)
    assert [{:status, {:error, _text}}] = span("publish /queue/a").reports
  end

  test "a batch is linked to the spans of its messages", %{url: url, client: client} do
    start_supervised!({Batches, url: url})
    :ok = Client.publish(client, "/queue/a", "1", wait: true)
    :ok = Client.publish_many(client, [{"/queue/a", "2"}, {"/queue/a", "3"}])
    [first, many] = for _n <- 1..2, do: span("publish /queue/a").span
    batch = span("process /queue/a")
    assert batch.parent == :undefined
    assert batch.opts.links == [link: first, link: many, link: many]
    assert batch.opts.attributes["messaging.batch.message_count"] == 3
  end

  test "no messages are no span", %{client: client} do
    assert Client.publish_many(client, []) == :ok
    refute_received {:span, _span}
  end

  test "requests, transactions, and the header of a message itself", %{
    client: client,
    broker: broker
  } do
    {:error, %{reason: :timeout}} =
      Client.request(client, "/queue/a", "1", wait: true, timeout: 200)

    assert [{:status, {:error, _text}}] = span("publish /queue/a").reports
    assert TestBroker.assert_published(broker, "/queue/a", "1") |> Frame.header("traceparent")

    {:ok, :ok} = Client.transaction(client, &Client.publish(&1, "/queue/a", "2"))
    {trace, id} = span("publish /queue/a").span
    frame = TestBroker.assert_published(broker, "/queue/a", "2")
    assert Frame.header(frame, "traceparent") == "00-#{trace}-#{id}-01"

    own = [headers: [{"traceparent", "own"}]]
    :ok = Client.publish(client, "/queue/a", "3", own)
    frame = TestBroker.assert_published(broker, "/queue/a", "3")
    assert for({"traceparent", value} <- frame.headers, do: value) == ["own"]
  end

  test "frames as events", %{client: client} do
    test = self()

    handler = fn event, measurements, metadata, _ ->
      send(test, {event, measurements, metadata})
    end

    events = [[:barytherium, :client, :trace]]
    :ok = apply(:telemetry, :attach_many, ["trace", events, handler, nil])
    :ok = Client.trace(client, :telemetry)
    :ok = Client.publish(client, "/queue/a", "1", wait: true)
    assert_receive {_event, %{count: 1}, %{direction: :sent, frames: [%{command: :send}]}}
    assert_receive {_event, %{count: 1}, %{client: ^client, frames: [%{command: :receipt}]}}
    :ok = Client.trace(client, nil)
    :ok = Client.publish(client, "/queue/a", "2")
    refute_receive {_event, _measurements, %{frames: [%{body: "2"}]}}, 50
  end

  test "a function that fails keeps no message from being sent", %{client: client, broker: broker} do
    for {function, body} <- [{:raising, "1"}, {:garbage, "2"}, {:reserved, "3"}] do
      Application.put_env(:barytherium, :publish_headers, {__MODULE__, function, []})

      log =
        ExUnit.CaptureLog.capture_log(fn ->
          assert Client.publish(client, "/queue/a", body, wait: true) == :ok
        end)

      assert log =~ ":publish_headers" and not (log =~ "hunter2")
      TestBroker.assert_published(broker, "/queue/a", body)
    end
  end

  def raising, do: raise("hunter2")
  def garbage, do: :hunter2
  def reserved, do: [{"destination", "/queue/hunter2"}]
end
