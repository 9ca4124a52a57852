defmodule Barytherium.ConsumerTest do
  use Barytherium.ClientCase, async: true

  alias Barytherium.Consumer

  # Tells the test of everything. What a message does is in its body.
  defmodule Reporter do
    use Barytherium.Consumer, subscribe: "/queue/a", backoff: {20, 100}

    import Barytherium.Untyped

    @impl true
    def init({:stop, reason}), do: {:stop, reason}

    def init(test) do
      send(test, {:init, self()})
      {:ok, test}
    end

    @impl true
    def handle_message(%Frame{body: body} = frame, test) do
      send(test, {:message, frame})

      case body do
        "nack" <> _more -> {:nack, test}
        "noreply" -> {:noreply, test}
        "raise" <> _more -> raise "oh no"
        "throw" -> throw({:secret, body})
        "match" -> :nothing = untyped(body)
        "argument" -> only_atoms(untyped(body))
        "return" -> :ok
        "wait" -> wait(test)
        "slow noreply" <> _more -> slow(:noreply, test)
        "slow" <> _more -> slow(:ack, test)
        _other -> {:ack, test}
      end
    end

    defp only_atoms(atom) when is_atom(atom), do: atom

    defp slow(result, test) do
      Process.sleep(20)
      {result, test}
    end

    defp wait(test) do
      send(test, {:waiting, self()})
      receive do: (:go -> {:ack, test})
    end

    @impl true
    def handle_connected(info, test), do: tell({:connected, info}, test)
    @impl true
    def handle_disconnected(reason, test), do: tell({:disconnected, reason}, test)
    @impl true
    def handle_error(frame, test), do: tell({:error, frame}, test)
    @impl true
    def handle_info(message, test), do: tell({:info, message}, test)

    @impl true
    def terminate(reason, test), do: send(test, {:terminate, reason})

    defp tell(event, test) do
      send(test, event)
      {:ok, test}
    end
  end

  defmodule Batches do
    use Barytherium.Consumer, subscribe: {"/queue/a", ack: :client}

    @impl true
    def handle_batch(frames, test) do
      send(test, {:batch, Enum.map(frames, & &1.body)})
      if hd(frames).body == "raise", do: raise("oh no")
      {:ack, test}
    end
  end

  # The consumers that a test stops are linked to it.
  setup do
    Process.flag(:trap_exit, true)
    :ok
  end

  defp started(module \\ Reporter, opts \\ [], headers \\ [{"version", "1.2"}]),
    do: start_consumer(module, opts, headers)

  @rabbitmq [{"version", "1.2"}, {"server", "RabbitMQ/3.10.8"}]

  # The process that runs the callbacks.
  defp worker(consumer) do
    [client | _more] = Consumer.clients(consumer)
    {_state, data} = :sys.get_state(client)
    data.handlers.pid
  end

  defp stopping(consumer), do: Task.async(fn -> Supervisor.stop(consumer, :shutdown) end)

  test "handles messages in order, and does with them what the callback says" do
    {consumer, peer, id, _listener} = started()
    for body <- ["1", "nack2", "noreply", "4"], do: message(peer, id, body)

    for body <- ["1", "nack2", "noreply", "4"],
        do: assert_receive({:message, %Frame{body: ^body}})

    assert {%{"id" => "a-1"}, ""} = expect(peer, :ack)
    assert {%{"id" => "a-nack2"}, ""} = expect(peer, :nack)
    assert {%{"id" => "a-4"}, ""} = expect(peer, :ack)
    stop_consumer(consumer, peer)
    assert_receive {:terminate, :shutdown}
  end

  test "subscribes with prefetching" do
    {listener, url} = broker()
    start_supervised!({Reporter, url: url, init_arg: self()})
    peer = accept_connected(listener, [{"version", "1.2"}, {"server", "RabbitMQ/4"}])

    assert {%{"prefetch-count" => "256", "ack" => "client-individual"}, ""} =
             confirm(peer, :subscribe)
  end

  test "acknowledges a slow message before the next" do
    {_consumer, peer, id, _listener} = started()
    messages = for body <- ["1", "wait", "3"], do: bytes(id, body)
    Peer.send(peer, Enum.join(messages))
    assert_receive {:waiting, worker}
    # Longer than acknowledgements are collected.
    Process.sleep(20)
    send(worker, :go)
    assert {%{"id" => "a-1"}, ""} = expect(peer, :ack)
    assert {%{"id" => "a-wait"}, ""} = expect(peer, :ack)
    assert {%{"id" => "a-3"}, ""} = expect(peer, :ack)
  end

  defp bytes(id, body) do
    headers = [{"subscription", id}, {"message-id", body}, {"ack", "a-#{body}"}]
    frame = %Frame{command: :message, headers: headers, body: body}
    frame |> Frame.format("1.2") |> IO.iodata_to_binary()
  end

  test "acknowledges messages of several subscriptions, also if their headers are padded" do
    subscribe = ["/queue/a", "/queue/b"]

    {_consumer, peer, _id, _listener} =
      started(Reporter, [subscribe: subscribe], [{"session", "x"}])

    {%{"id" => id}, ""} = confirm(peer, :subscribe)
    Peer.send(peer, "MESSAGE\nsubscription: #{id}\nmessage-id:m1\n\nx\0")
    assert {%{"message-id" => "m1"}, ""} = expect(peer, :ack)
  end

  test "another process can acknowledge later" do
    {_consumer, peer, id, _listener} = started()
    assert_receive {:connected, %{client: client, server: nil, version: "1.2", headers: _headers}}
    message(peer, id, "noreply")
    assert_receive {:message, frame}
    assert Client.ack(client, frame) == :ok
    assert {%{"id" => "a-noreply"}, ""} = expect(peer, :ack)
    assert_raise ArgumentError, ~r/:subscribe/, fn -> Client.subscribe(client, "/queue/b") end
  end

  describe "a callback that fails" do
    test "has its message refused, is logged without the body, and the next one is handled" do
      log =
        capture_log(fn ->
          {_consumer, peer, id, _listener} = started(Reporter, [], @rabbitmq)
          bodies = ["raise", "throw", "match", "argument", "return"]

          for body <- bodies do
            message(peer, id, body)
            assert {%{"id" => refused}, ""} = expect(peer, :nack)
            assert refused == "a-" <> body
          end

          message(peer, id, "fine")
          expect(peer, :ack)
          assert_receive {:init, _pid}
          refute_received {:init, _pid}
        end)

      assert log =~ "Reporter: ** (RuntimeError) oh no"
      assert log =~ "Reporter.handle_message/2"
      assert log =~ "consumer_test.exs:"
      assert log =~ "** (throw)"
      assert log =~ "** (MatchError)"
      assert log =~ "only_atoms/1"
      assert log =~ "handle_message/2 returned "
      for body <- ["secret", "\"match", "\"argument"], do: refute(log =~ body)
    end

    test "starts anew, if that is wanted" do
      {_consumer, peer, id, listener} = started(Reporter, [on_exception: :restart], @rabbitmq)
      assert_receive {:init, worker}
      Peer.send(peer, bytes(id, "raise") <> bytes(id, "2"))
      expect(peer, :nack)
      disconnect(peer)
      assert_receive {:init, other} when other != worker
      peer = accept_connected(listener)
      confirm(peer, :subscribe)
      refute_received {:message, %Frame{body: "2"}}
    end

    test "again and again pauses, and does not handle what its connection has left behind" do
      {_consumer, peer, id, listener} = started(Reporter, [], @rabbitmq)
      bodies = for n <- 1..40, do: "raise#{n}"
      Peer.send(peer, Enum.map_join(bodies, &bytes(id, &1)))
      # By now the pauses are longer than the test waits for anything else.
      assert_receive {:message, %Frame{body: "raise10"}}
      Peer.close(peer)
      peer = accept_connected(listener)
      confirm(peer, :subscribe)
      refute_received {:message, %Frame{body: "raise13"}}
    end

    test "has its headers on the NACK" do
      {_consumer, peer, id, _listener} = started(Reporter, nack_headers: [{"requeue", "false"}])
      message(peer, id, "nack")
      assert {%{"requeue" => "false"}, ""} = expect(peer, :nack)
    end

    test "leaves its message to brokers that would discard it, and goes on" do
      {_consumer, peer, id, listener} = started()
      message(peer, id, "raise")
      message(peer, id, "2")
      assert {%{"id" => "a-2"}, ""} = expect(peer, :ack)
      # When many are left, the connection ends, and the broker delivers them again.
      Peer.send(peer, Enum.map_join(3..33, &bytes(id, "raise#{&1}")))
      expect(peer, :disconnect)
      Peer.close(peer)
      peer = accept_connected(listener)
      confirm(peer, :subscribe)
    end

    test "leaves its message to the broker where an acknowledgement would cover it" do
      for {opts, headers} <- [
            {[], [{"version", "1.0"}]},
            {[subscribe: {"/queue/a", ack: :client}], [{"version", "1.2"}]}
          ] do
        {_consumer, peer, id, listener} = started(Reporter, opts, headers)
        Peer.send(peer, Enum.map_join(["1", "raise", "2"], &bytes(id, &1)))
        assert {%{}, ""} = expect(peer, :ack)
        expect(peer, :disconnect)
        Peer.close(peer)
        accept(listener)
        refute_received {:message, %Frame{body: "2"}}
      end
    end

    test "does not keep the others of a topic, which the broker has forgotten" do
      opts = [subscribe: {"/topic/a", ack: :client}]
      {_consumer, peer, id, _listener} = started(Reporter, opts)
      Peer.send(peer, Enum.map_join(["1", "raise", "2"], &bytes(id, &1)))
      for body <- ["1", "raise", "2"], do: assert_receive({:message, %Frame{body: ^body}})
      expect(peer, :ack)
    end

    test "and is started again with pauses that grow does not end the supervisor" do
      {consumer, peer, id, listener} = started(Reporter, [on_exception: :restart], @rabbitmq)

      last =
        Enum.reduce(1..5, {peer, id}, fn n, {peer, id} ->
          message(peer, id, "raise#{n}")
          expect(peer, :nack)
          disconnect_unconfirmed(peer)
          peer = accept_connected(listener, @rabbitmq)
          {%{"id" => id}, ""} = confirm(peer, :subscribe)
          {peer, id}
        end)

      assert %{active: 2} = Supervisor.count_children(consumer)
      {peer, id} = last
      message(peer, id, "fine")
      expect(peer, :ack)
    end

    defp disconnect_unconfirmed(peer) do
      expect(peer, :disconnect)
      Peer.close(peer)
    end
  end

  describe "batches" do
    test "are what has arrived together, and one frame acknowledges them with ack: :client" do
      {consumer, peer, id, _listener} = started(Batches)
      Peer.send(peer, Enum.map_join(["1", "2", "3"], &bytes(id, &1)))
      assert_receive {:batch, ["1", "2", "3"]}
      assert {%{"id" => "a-3"}, ""} = expect(peer, :ack)
      stop_consumer(consumer, peer)
    end

    test "are refused when the callback raises" do
      {consumer, peer, id, _listener} = started(Batches, [], @rabbitmq)
      Peer.send(peer, Enum.map_join(["raise", "2"], &bytes(id, &1)))
      assert {%{"id" => "a-raise"}, ""} = expect(peer, :nack)
      assert {%{"id" => "a-2"}, ""} = expect(peer, :nack)
      stop_consumer(consumer, peer)
    end
  end

  describe "results" do
    defmodule Results do
      use Barytherium.Consumer, subscribe: "/queue/a"

      @impl true
      def handle_batch(frames, state) do
        {for(%{body: body} <- frames, do: result(body)), state}
      end

      defp result("nack"), do: {:nack, [{"requeue", "false"}]}
      defp result(body), do: String.to_existing_atom(body)
    end

    test "of a batch may differ for each message" do
      {consumer, peer, id, _listener} = started(Results)
      Peer.send(peer, Enum.map_join(["ack", "nack", "noreply", "ack"], &bytes(id, &1)))
      assert {%{"id" => "a-ack"}, ""} = expect(peer, :ack)
      assert {%{"id" => "a-nack", "requeue" => "false"}, ""} = expect(peer, :nack)
      assert {%{"id" => "a-ack"}, ""} = expect(peer, :ack)
      stop_consumer(consumer, peer)
    end

    defmodule Refusing do
      use Barytherium.Consumer, subscribe: "/queue/a"

      @impl true
      def handle_message(%{body: "bad"}, state), do: {:nack, [{"id", "1"}], state}
      def handle_message(_frame, state), do: {:nack, [{"requeue", "false"}], state}
    end

    test "may have headers for a NACK, which are checked" do
      {consumer, peer, id, _listener} = started(Refusing, nack_headers: [{"requeue", "true"}])
      message(peer, id, "1")
      assert {%{"id" => "a-1", "requeue" => "false"}, ""} = expect(peer, :nack)

      log =
        capture_log(fn ->
          message(peer, id, "bad")
          message(peer, id, "2")
          assert {%{"id" => "a-2"}, ""} = expect(peer, :nack)
        end)

      assert log =~ "is set by the client"
      stop_consumer(consumer, peer)
    end
  end

  describe "the connection" do
    test "is made again, and the callbacks are told" do
      {_consumer, peer, _id, listener} = started()
      assert_receive {:connected, _info}
      Peer.close(peer)
      assert_receive {:disconnected, %Barytherium.Error{reason: :closed}}
      peer = accept_connected(listener)
      confirm(peer, :subscribe)
      assert_receive {:connected, _info}
    end

    test "that is refused, or silent, or impossible, is told" do
      {listener, url} = broker()
      opts = [url: url, init_arg: self(), first_frame_timeout: 50, backoff: {20, 20}]
      start_supervised!({Reporter, opts})
      {peer, _connect} = accept(listener)
      reply(peer, :error, [{"message", "Bad CONNECT"}])
      assert_receive {:error, %Frame{command: :error}}
      assert_receive {:disconnected, %Barytherium.Error{reason: :refused}}
      accept(listener)
      assert_receive {:disconnected, %Barytherium.Error{reason: :timeout}}
      Peer.close(listener)
      assert_receive {:disconnected, %Barytherium.Error{reason: :econnrefused}}
    end

    test "whose subscription is refused is told, and tried again" do
      {listener, url} = broker()
      start_supervised!({Reporter, url: url, init_arg: self()})
      peer = accept_connected(listener)
      expect(peer, :subscribe)
      # RabbitMQ does not say which frame it refuses.
      reply(peer, :error, [{"message", "access_refused"}])
      assert_receive {:error, %Frame{command: :error}}
      disconnect(peer)
      assert_receive {:disconnected, %Barytherium.Error{reason: :refused}}
      peer = accept_connected(listener)
      confirm(peer, :subscribe)
    end

    test "that has ended takes its messages with it, except those without acknowledgements" do
      for {destination, ack, handled} <- [
            {"/queue/a", :client_individual, ["wait"]},
            {"/queue/a", :auto, ["wait", "2", "3"]},
            {"/topic/a", :client_individual, ["wait", "2", "3"]}
          ] do
        opts = [subscribe: {destination, ack: ack}]
        {consumer, peer, id, listener} = started(Reporter, opts)
        message(peer, id, "wait")
        assert_receive {:waiting, worker}
        for body <- ["2", "3"], do: message(peer, id, body)
        Peer.close(peer)
        [client] = Consumer.clients(consumer)
        eventually(fn -> match?(%{error: %{reason: :closed}}, Client.status(client)) end)
        send(worker, :go)
        peer = accept_connected(listener)
        confirm(peer, :subscribe)
        for body <- handled, do: assert_receive({:message, %Frame{body: ^body}})
        # It has seen everything then that came before.
        :sys.get_state(worker)
        refute_received {:message, _frame}
      end
    end

    defp received_bodies do
      receive do
        {:message, %Frame{body: body}} -> [body | received_bodies()]
      after
        0 -> []
      end
    end

    test "of each of several processes is one of its own" do
      {listener, url} = broker()
      {:ok, consumer} = Reporter.start_link(url: url, init_arg: self(), concurrency: 3)
      peers = for _n <- 1..3, do: accept_connected(listener)
      for peer <- peers, do: confirm(peer, :subscribe)
      clients = Consumer.clients(consumer)
      assert length(clients) == 3
      for client <- clients, do: assert(Client.status(client).state == :connected)
      stopping = stopping(consumer)
      # They stop at the same time.
      Task.await_many([stopping | for(peer <- peers, do: Task.async(fn -> disconnect(peer) end))])
    end
  end

  describe "stopping" do
    test "handles and acknowledges what has arrived, and nothing more" do
      {consumer, peer, id, _listener} = started()
      message(peer, id, "wait")
      assert_receive {:waiting, worker}
      for body <- ["2", "3"], do: message(peer, id, body)
      [client] = Consumer.clients(consumer)
      # CONNECTED, RECEIPT, and the messages.
      eventually(fn -> Client.stats(client).frames == 5 end)
      stopping = stopping(consumer)
      eventually(fn -> {:"$gen_cast", {:client, :finish}} in mailbox(worker) end)
      send(worker, :go)

      for body <- ["a-wait", "a-2", "a-3"],
          do: assert({%{"id" => ^body}, ""} = expect(peer, :ack))

      {headers, ""} = expect(peer, :disconnect)
      message(peer, id, "4")
      reply(peer, :receipt, [{"receipt-id", headers["receipt"]}])
      Peer.close(peer)
      Task.await(stopping)
      assert received_bodies() == ["wait", "2", "3"]
    end

    defp mailbox(pid), do: pid |> Process.info(:messages) |> elem(1)

    test "unsubscribes first if there are no acknowledgements, and handles everything" do
      {consumer, peer, id, _listener} = started(Reporter, subscribe: {"/topic/a", ack: :auto})
      stopping = stopping(consumer)
      {headers, ""} = expect(peer, :unsubscribe)
      message(peer, id, "last")
      reply(peer, :receipt, [{"receipt-id", headers["receipt"]}])
      disconnect(peer)
      Task.await(stopping)
      assert received_bodies() == ["last"]
    end

    test "takes no longer than it may" do
      {consumer, peer, id, _listener} = started(Reporter, shutdown: 1_000)
      message(peer, id, "1")
      expect(peer, :ack)
      {time, :ok} = :timer.tc(fn -> Supervisor.stop(consumer, :shutdown) end)
      # The broker does not answer DISCONNECT. The supervisor would have killed the process later.
      assert_received {:terminate, :shutdown}
      assert time < 1_000_000
    end

    for {ack, what} <- [
          client_individual: "slow",
          client_individual: "slow noreply",
          auto: "slow"
        ] do
      test "does not handle what there is no time for (#{ack}, #{what})" do
        subscribe = {"/queue/a", ack: unquote(ack)}
        {consumer, peer, id, _listener} = started(Reporter, shutdown: 1_000, subscribe: subscribe)
        no_time_for(unquote(what), consumer, peer, id)
      end
    end

    defp no_time_for(what, consumer, peer, id) do
      # This takes two seconds.
      Peer.send(peer, Enum.map_join(1..100, &bytes(id, "#{what}#{&1}")))
      assert_receive {:message, %Frame{}}
      stopping = stopping(consumer)
      disconnect_after_acks(peer)
      Task.await(stopping)
      assert_received {:terminate, :shutdown}
      assert length(received_bodies()) < 99
    end

    defp disconnect_after_acks(peer) do
      case next_frame(peer) do
        %Frame{command: :ack} ->
          disconnect_after_acks(peer)

        %Frame{command: :unsubscribe, headers: headers} ->
          {"receipt", receipt} = List.keyfind(headers, "receipt", 0)
          reply(peer, :receipt, [{"receipt-id", receipt}])
          disconnect_after_acks(peer)

        %Frame{command: :disconnect} ->
          Peer.close(peer)
      end
    end
  end

  test "a process that is killed at any stage is replaced, and leaves nothing behind" do
    {listener, url} = broker()
    opts = [url: url, init_arg: self(), concurrency: 2]
    {:ok, consumer} = Reporter.start_link(opts)
    for _n <- 1..2, do: accept(listener)

    stages = [
      connecting: fn -> Peer.accept(listener) end,
      logging_in: fn -> listener |> accept() |> elem(0) end,
      subscribing: fn -> accept_connected(listener) end,
      subscribed: fn -> subscribed(listener) end,
      handling: fn -> handling(listener) end,
      stopping: fn -> stopping_after_end(listener) end
    ]

    for {stage, reach} <- stages do
      [client | _] = Consumer.clients(consumer)
      {:links, links} = Process.info(client, :links)
      monitors = for pid <- [client | links -- [consumer]], do: {stage, Process.monitor(pid)}
      Process.exit(client, :kill)
      for {_stage, monitor} <- monitors, do: assert_receive({:DOWN, ^monitor, :process, _, _})
      reach.()
    end
  end

  defp subscribed(listener) do
    peer = accept_connected(listener)
    {%{"id" => id}, ""} = confirm(peer, :subscribe)
    {peer, id}
  end

  defp handling(listener) do
    {peer, id} = subscribed(listener)
    message(peer, id, "wait")
    assert_receive {:waiting, _worker}
  end

  defp stopping_after_end(listener) do
    {peer, _id} = subscribed(listener)
    Peer.close(peer)
  end

  test "other messages reach handle_info" do
    {consumer, _peer, _id, _listener} = started()
    send(worker(consumer), :hello)
    assert_receive {:info, :hello}
  end

  test "init can refuse to start" do
    {_listener, url} = broker()

    assert {:error, {:shutdown, {:failed_to_start_child, 1, :nope}}} =
             Reporter.start_link(url: url, init_arg: {:stop, :nope})
  end

  describe "publishing in a callback" do
    defmodule Echo do
      use Barytherium.Consumer, subscribe: "/queue/a"

      @impl true
      def handle_connected(info, test), do: {:ok, {test, info.client}}

      @impl true
      def handle_message(frame, {test, client} = state) do
        opts = if frame.body == "receipt", do: [], else: [receipt: false]
        :ok = Client.publish(client, "/queue/b", frame.body, opts)
        send(test, :published)
        {:ack, state}
      end
    end

    test "works without a receipt, before the acknowledgement" do
      {_consumer, peer, id, _listener} = started(Echo)
      message(peer, id, "x")
      assert {%{"destination" => "/queue/b"}, "x"} = expect(peer, :send)
      expect(peer, :ack)
    end

    test "works with one" do
      {_consumer, peer, id, _listener} = started(Echo)
      message(peer, id, "receipt")
      assert {%{"destination" => "/queue/b"}, "receipt"} = confirm(peer, :send)
      expect(peer, :ack)
    end

    defmodule Transactions do
      use Barytherium.Consumer, subscribe: "/queue/a"

      @impl true
      def handle_connected(info, _state), do: {:ok, info.client}

      @impl true
      def handle_message(frame, client) do
        opts = if frame.body == "receipt", do: [], else: [receipt: false]

        {:ok, :ok} =
          Client.transaction(
            client,
            fn transaction ->
              :ok = Client.publish(transaction, "/queue/b", "out")
              Client.ack(transaction, frame)
            end,
            opts
          )

        {:noreply, client}
      end
    end

    test "works in a transaction, with the acknowledgement" do
      {_consumer, peer, id, _listener} = started(Transactions)
      message(peer, id, "x")
      for command <- [:begin, :send, :ack, :commit], do: expect(peer, command)
      message(peer, id, "receipt")
      for command <- [:begin, :send, :ack], do: expect(peer, command)
      confirm(peer, :commit)
    end
  end

  test "secrets are in no state, child spec or report" do
    secret = "hunter2"
    {listener, url} = broker("me:#{secret}@")
    opts = [url: url, init_arg: self(), passcode: secret]
    refute inspect(Reporter.child_spec(opts)) =~ secret

    log =
      capture_log(fn ->
        consumer = start_supervised!({Reporter, opts})
        accept_connected(listener)
        [client] = Consumer.clients(consumer)
        worker = worker(consumer)
        refute inspect(:supervisor.get_childspec(consumer, 1)) =~ secret

        for pid <- [worker, client],
            do: refute(inspect(:sys.get_state(pid), limit: :infinity) =~ secret)

        monitor = Process.monitor(worker)
        Process.exit(worker, :kill)
        assert_receive {:DOWN, ^monitor, :process, ^worker, :killed}
        accept_connected(listener)
      end)

    refute log =~ secret
  end

  test "mistakes in the options raise" do
    for {opts, message} <- [
          {[url: "stomp://h", subscribe: {"/a", ak: :auto}], ~r/unknown option :ak; .*:ack/},
          {[url: "stomp://h", concurrency: 0], ~r/:concurrency/},
          {[url: "stomp://h", concurrency: 2, client_id: "a"], ~r/:client_id: with :concurrency/},
          {[url: "stomp://h", max_attempts: 0], ~r/:max_attempts/},
          {[url: "stomp://h", retry_delay: {2, 1}], ~r/:retry_delay/},
          {[url: "stomp://h", on_exhausted: {:publish, ""}], ~r/:on_exhausted/},
          {[url: "stomp://h", concurency: 2], ~r/unknown option :concurency; .*:concurrency/},
          {[], ~r/option :url is missing/},
          {[url: "stomp://h", subscribe: {"/a", headers: [{"selector", {:x}}]}], ~r/selector/},
          {[url: "stomp://h", nack_headers: [{"id", "1"}]], ~r/is set by the client/},
          {"stomp://a:hunter2@h", ~r/not a keyword list/}
        ] do
      assert_raise ArgumentError, message, fn -> Reporter.start_link(opts) end
    end

    # A module that uses it is warned about when it is compiled.
    assert_raise ArgumentError, ~r/neither handle_message/, fn ->
      Barytherium.Consumer.start_link(Enum, [])
    end
  end
end
