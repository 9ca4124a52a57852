defmodule Barytherium.TelemetryTest do
  @moduledoc """
  Uses `:telemetry` if it is there, and otherwise a stand-in, because the project does not depend on it.
  """
  use Barytherium.ReceiverCase, async: false

  import Barytherium.ClientCase, except: [message: 3, message: 4]

  alias Barytherium.{Client, ClientCase, Native, Network, Telemetry}

  @moduletag capture_log: true

  setup do
    if Code.ensure_loaded?(:telemetry), do: attach(), else: stand_in()
    :ok
  end

  defp attach do
    {:ok, _started} = Application.ensure_all_started(:telemetry)
    config = self()

    apply(:telemetry, :attach_many, [__MODULE__, Telemetry.events(), &__MODULE__.handle/4, config])

    on_exit(fn -> apply(:telemetry, :detach, [__MODULE__]) end)
  end

  def handle(name, measurements, metadata, test), do: send(test, {name, measurements, metadata})

  defp stand_in do
    test = self()

    {:module, :telemetry, _binary, _term} =
      defmodule :telemetry do
        def execute([:barytherium | _event] = name, measurements, metadata) do
          send(:persistent_term.get(:telemetry), {name, measurements, metadata})
          :ok
        end

        def list_handlers([:barytherium, :consumer]), do: [:one]
      end

    :persistent_term.put(:telemetry, test)

    on_exit(fn ->
      :code.purge(:telemetry)
      :code.delete(:telemetry)
      :persistent_term.erase(:telemetry)
    end)
  end

  test "a connect is an event" do
    listener = Peer.listen(:tcp)
    port = Peer.port(listener)
    {:ok, network} = Network.start_link(self(), {127, 0, 0, 1}, port)
    assert_receive {[:barytherium, :connect], %{duration: duration}, metadata}
    assert is_integer(duration)
    assert %{host: {127, 0, 0, 1}, port: ^port, result: :ok, network: ^network} = metadata
  end

  test "a pause is an event when it is over" do
    slow = spawn_link(fn -> receive do: (:take -> take()) end)
    {socket, peer} = Peer.pair()
    state = %{socket: socket, listener_pid: slow, network_pid: self(), sender_pid: self()}
    stats = Native.new_stats()
    state = Map.merge(state, %{stats: stats, hb_recv: 0, options: [high_water_mark: 1]})
    {:ok, _receiver} = Receiver.start_loop(state)
    Peer.send(peer, "MESSAGE\n\n\0")
    eventually(fn -> match?(%{pauses: 1}, Native.stats(stats)) end)
    send(slow, :take)
    assert_receive {[:barytherium, :pause], %{duration: duration}, metadata}
    assert is_integer(duration)
    assert metadata == %{listener: slow, network: self()}
  end

  defp take do
    receive do
      {:"$gen_cast", _message} -> take()
    end
  end

  test "an ERROR instead of CONNECTED is an event with its message" do
    {socket, peer} = Peer.pair()
    {:ok, _receiver} = Receiver.start_link(socket, self(), self(), self())

    ExUnit.CaptureLog.capture_log(fn ->
      Peer.send(peer, "ERROR\nmessage:Bad CONNECT\n\n\0")
      assert_receive {[:barytherium, :refused], %{}, metadata}
      assert metadata == %{message: "Bad CONNECT", listener: self(), network: self()}
    end)
  end

  test "a refused connection is an event with its reason" do
    listener = Peer.listen(:tcp)
    port = Peer.port(listener)
    Peer.close(listener)
    {:ok, _network} = Network.start_link(self(), {127, 0, 0, 1}, port)
    assert_receive {[:barytherium, :connect], _measurements, %{result: :econnrefused}}
  end

  test "a disconnect is an event with the stats of the connection" do
    listener = Peer.listen(:tcp)
    {:ok, network} = Network.start_link(self(), {127, 0, 0, 1}, Peer.port(listener))
    peer = Peer.accept(listener)
    Peer.send(peer, "CONNECTED\n\n\0")
    Peer.close(peer)
    assert_receive {[:barytherium, :disconnect], measurements, metadata}
    assert %{frames: 1, bytes: 12, pauses: 0} = measurements
    assert Enum.all?(measurements, fn {_name, value} -> is_integer(value) end)
    assert %{reason: :closed, network: ^network, tls: nil} = metadata
  end

  describe "a client" do
    test "tells of its health" do
      {listener, url} = broker()
      {:ok, client} = Client.start_link(url: url)
      peer = accept_connected(listener)
      subscribed(client, peer, ack: :auto, max_silence: 1)

      assert_receive {[:barytherium, :client, :health], %{}, %{client: ^client} = metadata}, 5_000
      assert [{:silent, "/queue/a", _time}] = metadata.problems
    end

    test "tells of its connections, of ERROR frames and of what it publishes" do
      {listener, url} = broker("me:hunter2@")
      client = start_supervised!({Client, url: url, backoff: {20, 100}})
      peer = accept_connected(listener, [{"version", "1.2"}, {"server", "Test/1"}])
      assert_receive {[:barytherium, :client, :connected], %{duration: _}, metadata}
      assert %{client: ^client, version: "1.2", server: "Test/1", headers: [_ | _]} = metadata
      assert metadata.endpoint == String.replace(url, "me:hunter2@", "")
      trace = {"traceparent", "00-1-2-01"}
      publishing = Task.async(fn -> Client.publish(client, "/a", "body", headers: [trace]) end)
      confirm(peer, :send)
      assert Task.await(publishing) == :ok

      assert_receive {[:barytherium, :client, :publish], %{count: 1, bytes: 4, duration: _},
                      metadata}

      assert %{client: ^client, result: :ok, messages: [headers]} = metadata
      assert trace in headers and {"destination", "/a"} in headers
      messages = [{"/a", "1"}, {"/a", "23"}]

      assert {:error, %Barytherium.Error{reason: :timeout}, ^messages} =
               Client.publish_many(client, messages, timeout: 20)

      assert_receive {[:barytherium, :client, :publish], %{count: 2, bytes: 3}, metadata}

      assert %{result: {:error, %Barytherium.Error{reason: :timeout}}, messages: [_, _]} =
               metadata

      for _message <- messages, do: expect(peer, :send)
      reply(peer, :error, [{"message", "no"}])
      assert_receive {[:barytherium, :client, :error], _none, %{frame: %Frame{command: :error}}}
      disconnect(peer)

      assert_receive {[:barytherium, :client, :disconnected], %{duration: _},
                      %{client: ^client} = metadata}

      assert %{error: %{frame: %Frame{command: :error}}, failures: 0} = metadata
      Peer.close(listener)

      assert_receive {[:barytherium, :client, :connection_failure], %{duration: _},
                      %{client: ^client} = metadata}

      assert metadata.failures == 1
      assert metadata.error.reason in [:econnrefused, :closed]
    end
  end

  test "publishing without waiting is over when it is accepted, and what is given up is an event" do
    {client, peer, listener} = ClientCase.connected_client(spool: :memory)
    {:ok, _reference} = Client.publish_many_async(client, [{"/a", "1"}, {"/a", "23"}])

    assert_receive {[:barytherium, :client, :publish, :start], %{count: 2, bytes: 3},
                    %{client: ^client}}

    assert_receive {[:barytherium, :client, :publish], %{count: 2}, %{result: :ok}}
    {%{"receipt" => id}, "1"} = expect(peer, :send)
    reply(peer, :error, [{"receipt-id", id}, {"message", "no"}])
    assert_receive {[:barytherium, :client, :not_published], %{}, %{client: ^client} = metadata}
    assert %{frame: %Frame{body: "1"}, error: %Barytherium.Error{reason: :refused}} = metadata
    Peer.close(listener)
  end

  test "a call to a client that has ended has an event for its end, too" do
    for {event, call} <- [
          publish: &Client.publish(&1, "/a", "x"),
          publish: &Client.publish_async(&1, "/a", "x"),
          request: &Client.request(&1, "/a", "x")
        ] do
      {ended, monitor} = spawn_monitor(fn -> :ok end)
      assert_receive {:DOWN, ^monitor, :process, ^ended, :normal}
      assert {:noproc, _call} = catch_exit(call.(ended))
      assert_receive {[:barytherium, :client, :publish, :start], _measurements, %{client: ^ended}}

      assert_receive {[:barytherium, :client, ^event], _measurements,
                      %{client: ^ended} = metadata}

      assert {:error, %Barytherium.Error{reason: :closed}} = metadata.result
    end
  end

  describe "a consumer" do
    defmodule Messages do
      use Barytherium.Consumer, subscribe: "/queue/a"

      @impl true
      def handle_message(%{body: {:compressed, _body, :damaged}}, state), do: {:nack, state}
      def handle_message(%{body: "raise"}, _state), do: raise("oh no")
      def handle_message(_frame, state), do: {:ack, state}
    end

    defmodule Batches do
      use Barytherium.Consumer, subscribe: "/queue/a"

      @impl true
      def handle_batch(_frames, state), do: {:nack, state}
    end

    defp consuming(module, opts \\ []) do
      {listener, url} = broker()
      {:ok, _consumer} = module.start_link([url: url] ++ opts)
      peer = accept_connected(listener)
      {%{"id" => id}, ""} = confirm(peer, :subscribe)
      {peer, id}
    end

    test "has a span for each message" do
      {peer, id} = consuming(Messages)
      ClientCase.message(peer, id, "hello", [{"traceparent", "00-1-2-01"}])
      assert_receive {[:barytherium, :consumer, :message, :start], measurements, started}
      assert %{monotonic_time: _, system_time: _, count: 1, bytes: 5} = measurements
      assert %{module: Messages, client: client, consumer: consumer, headers: headers} = started
      assert is_pid(client) and is_pid(consumer)
      assert {"traceparent", "00-1-2-01"} in headers
      assert_receive {[:barytherium, :consumer, :message, :stop], measurements, metadata}
      assert %{monotonic_time: _, duration: _} = measurements
      assert metadata == Map.put(started, :result, :ack)
      ClientCase.message(peer, id, "raise")
      assert_receive {[:barytherium, :consumer, :message, :exception], %{duration: _}, metadata}
      assert %{kind: :error, reason: %RuntimeError{}, stacktrace: [_ | _], headers: _} = metadata
    end

    test "has a span for a message that cannot be inflated" do
      {peer, id} = consuming(Messages, inflate: true)
      gzip = :zlib.gzip("hello")
      damaged = binary_part(gzip, 0, byte_size(gzip) - 1)
      reply(peer, :message, [{"subscription", id}, {"message-id", "1"}, {"ack", "1"}], damaged)
      assert_receive {[:barytherium, :consumer, :message, :start], %{bytes: bytes}, _metadata}
      assert bytes == byte_size(damaged)
      assert_receive {[:barytherium, :consumer, :message, :stop], _measurements, %{result: :nack}}
    end

    test "has a span for each batch" do
      {peer, id} = consuming(Batches)
      ClientCase.message(peer, id, "hello")
      assert_receive {[:barytherium, :consumer, :batch, :start], %{count: 1, bytes: 5}, metadata}
      assert %{module: Batches, messages: [[_ | _]]} = metadata
      assert_receive {[:barytherium, :consumer, :batch, :stop], %{duration: _}, %{result: :nack}}
    end
  end

  test "events/0 lists every event that the documentation describes, and no other" do
    {:docs_v1, _line, _language, _format, %{"en" => doc}, _metadata, _docs} =
      Code.fetch_docs(Telemetry)

    for event <- Telemetry.events(),
        List.last(event) not in [:start, :stop, :exception],
        do: assert(doc =~ inspect(event))

    described = Regex.scan(~r/^ +\* `\[:barytherium/m, doc)
    # The last one describes three.
    assert length(described) == length(Telemetry.events()) - 2
  end
end
