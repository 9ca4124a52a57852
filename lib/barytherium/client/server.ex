defmodule Barytherium.Client.Server do
  @moduledoc false
  # The process of `Barytherium.Client`, and the callback process of its connections. `README.md` in this
  # folder has the picture.
  #
  #     :disconnected ──wait is over──► :connecting ──CONNECTED──► :connected ──close/2, stop──► :closing
  #          ▲                              │                          │                             │
  #          └──────────── failed ──────────┴──────── the end ─────────┘                             ▼
  #                                                                                                stop
  #
  # It never waits for another process. `Barytherium.Network` connects and writes, the receive loop sends
  # messages to whom they belong, and short-lived processes do what may take a while. So what arrives here
  # is small and seldom, and handled at once: CONNECTED, receipts, errors, the end.
  @behaviour :gen_statem

  alias Barytherium.Client.{
    Closing,
    Connecting,
    Events,
    Exchange,
    Feed,
    Handlers,
    Health,
    Publishing,
    Renewals,
    Routing,
    Session,
    Spool,
    State,
    Trace,
    Transactions,
    Writing
  }

  alias Barytherium.Connection.Deadline
  alias Barytherium.Frame

  # Marks a client in the dictionary of its process.
  @client_key :"$barytherium_client"

  # What may hold credentials or bodies.
  @hidden [:waiting, :settings, :handlers, :endpoint, :round, :subscriptions, :requests, :spool]

  @doc "Whether this process is a client. It is not asked, because it may be the one that waits."
  @spec client?(pid()) :: boolean()
  def client?(pid) do
    with {:dictionary, dictionary} <- Process.info(pid, :dictionary),
         do: Keyword.has_key?(dictionary, @client_key)
  end

  @spec init({pid(), map()}) :: :gen_statem.init_result(atom())
  @impl true
  def init({parent, settings}) do
    # With this, `terminate/3` runs when the parent ends.
    Process.flag(:trap_exit, true)
    Process.link(parent)
    data = State.new(parent, settings)
    Process.put(@client_key, true)

    with {:ok, spool} <- Spool.new(settings),
         {:ok, handlers} <- Handlers.start(settings[:consumer]) do
      data = Health.watch(%{data | spool: spool, handlers: handlers})
      {:ok, :disconnected, data, {:next_event, :internal, :connect}}
    else
      {:error, reason} -> {:stop, reason}
    end
  end

  @impl true
  def callback_mode, do: :handle_event_function

  @impl true
  # Connecting

  def handle_event(type, :connect, :disconnected, data)
      when type in [:internal, :state_timeout] do
    data = %{data | handlers: Handlers.ensure(data.handlers)}
    Connecting.connect(Connecting.new_round(data))
  end

  def handle_event(
        :cast,
        {:greeter, greeter, result, headers},
        :connecting,
        %{connection: %{greeter: greeter}} = data
      ),
      do: Connecting.greeted(result, Connecting.with_headers(headers, data))

  def handle_event(
        {:timeout, :credentials},
        greeter,
        :connecting,
        %{connection: %{greeter: greeter}} = data
      ) do
    Connecting.stop_greeter(data)
    Connecting.greeted(:failed, data)
  end

  def handle_event(:cast, {:barytherium, :connect, {:ok, sender}}, :connecting, data) do
    data = Trace.apply_to_connection(put_in(data.connection.sender, sender))
    Connecting.greet(sender, data)
    {:keep_state, data}
  end

  def handle_event(:cast, {:barytherium, :connect, {:error, reason}}, :connecting, data),
    do: Connecting.ended(reason, data)

  # What arrives

  def handle_event(
        :cast,
        {:barytherium, :frames, {[%Frame{command: :connected} = frame], sender}},
        :connecting,
        %{connection: %{sender: sender}} = data
      ),
      do:
        if(Connecting.offered?(frame, data),
          do: Connecting.connected(frame, data),
          else: :keep_state_and_data
        )

  def handle_event(
        :cast,
        {:barytherium, :frames, {frames, sender}},
        state,
        %{connection: %{sender: sender}} = data
      ),
      do:
        Closing.close_if_done(
          state,
          frames |> Enum.reduce(data, &Exchange.control/2) |> Publishing.go_on()
        )

  def handle_event(:cast, {:barytherium, :first_message, key}, state, data),
    do: Closing.close_if_done(state, Exchange.first_message(key, data))

  # Endings

  def handle_event(:cast, {:barytherium, :disconnect, reason}, :closing, data),
    do: Closing.closed(reason, data)

  def handle_event(:cast, {:barytherium, :disconnect, reason}, state, data)
      when state != :disconnected,
      do: Connecting.ended(reason, data)

  # The network process has crashed, so there will be no report.
  def handle_event(
        :info,
        {:EXIT, network, _reason},
        state,
        %{connection: %{network: network}} = data
      )
      when network != nil do
    data = put_in(data.connection.network, nil)
    if state == :closing, do: Closing.closed(:closed, data), else: Connecting.ended(:closed, data)
  end

  # The handler has ended. It is started again after a pause that grows, and what it has
  # not acknowledged is delivered again on the next connection.
  def handle_event(:info, {:EXIT, pid, reason}, state, %{handlers: %{pid: pid}} = data)
      when pid != nil do
    data = %{data | handlers: Handlers.ended(data.handlers)}

    case state do
      :closing -> Closing.close_if_done(:closing, data)
      :disconnected -> Connecting.wait(data)
      _connected -> Connecting.ended(Handlers.reason(reason), data)
    end
  end

  # An earlier network, which has done its work.
  def handle_event(:info, {:EXIT, pid, _reason}, _state, data)
      when is_map_key(data.former, pid),
      do: {:keep_state, %{data | former: Map.delete(data.former, pid)}}

  # It logs its crash itself.
  def handle_event(:info, {:EXIT, pid, _reason}, _state, %{parent: pid}), do: {:stop, :shutdown}
  def handle_event(:info, {:EXIT, _pid, :normal}, _state, _data), do: :keep_state_and_data

  def handle_event(:info, {:EXIT, _pid, reason}, _state, _data), do: {:stop, reason}

  # Receipts and errors

  def handle_event(:info, {:request_timeout, number}, state, data),
    do: Closing.close_if_done(state, Exchange.fail(number, :timeout, data))

  def handle_event(:info, {:spool, event}, state, data),
    do: Closing.close_if_done(state, Publishing.event(event, data))

  def handle_event(:info, {{:blocked, number}, _monitor, :process, _pid, _reason}, state, data),
    do: Closing.close_if_done(state, Publishing.event({:gone, number}, data))

  def handle_event(:info, {:written, {:spool, sender}}, state, data),
    do: Closing.close_if_done(state, Publishing.event({:written, sender}, data))

  def handle_event(:info, {:not_written, {:spool, sender}, reason}, state, data),
    do: Closing.close_if_done(state, Publishing.event({:not_written, sender, reason}, data))

  def handle_event(:info, {:written, number}, state, data),
    do: Closing.close_if_done(state, Exchange.written(number, data))

  # There was no room for it in time, or its connection has ended.
  def handle_event(:info, {:not_written, {:request, number}, reason}, state, data),
    do: Closing.close_if_done(state, Exchange.fail(number, not_written(reason), data))

  # Calls

  def handle_event({:call, from}, {:write, frames, timeout, wait}, state, data) do
    action = {:write, frames, Deadline.in_ms(timeout)}
    when_connected(action, from, {timeout, wait}, state, data)
  end

  def handle_event({:call, from}, {:publish, publication, timeout}, state, data),
    do: {:keep_state, Publishing.publish(publication, from, timeout, state, data)}

  def handle_event({:call, from}, {:flush, timeout}, _state, data),
    do: {:keep_state, Publishing.flush(from, timeout, data)}

  def handle_event({:call, from}, {:request, frame, reply_to, timeout, wait}, state, data) do
    action = {:request, frame, reply_to, Deadline.in_ms(timeout)}
    when_connected(action, from, {timeout, wait}, state, data)
  end

  def handle_event({:call, from}, {:sender, timeout, wait}, state, data),
    do: when_connected(:sender, from, {timeout, wait}, state, data)

  def handle_event({:call, from}, {{:begin, _id, _over} = begin, timeout, wait}, state, data),
    do: when_connected(begin, from, {timeout, wait}, state, data)

  def handle_event({:call, from}, {:commit, id, sender, how}, _state, data) do
    case Transactions.commit(id, sender, from, how, data) do
      {:ok, data} -> {:keep_state, data}
      error -> {:keep_state_and_data, {:reply, from, error}}
    end
  end

  def handle_event(:cast, {:committed, id}, _state, data),
    do: {:keep_state, Transactions.committed(id, :ok, data)}

  def handle_event(:cast, {:abort, id}, _state, data),
    do: {:keep_state, Transactions.abort(id, data)}

  # Its process has ended in the middle of it.
  def handle_event(:info, {{:transaction, id}, _monitor, :process, _pid, _reason}, _state, data),
    do: {:keep_state, Transactions.abandoned(id, data)}

  def handle_event(:info, {:waiting_timeout, number}, _state, data) do
    case Map.pop(data.waiting, number) do
      {nil, _waiting} ->
        :keep_state_and_data

      {%{from: from, action: action}, waiting} ->
        {:keep_state, Exchange.refuse(action, from, %{data | waiting: waiting})}
    end
  end

  # Nobody waits for the reply any more.
  def handle_event(:info, {{:requester, number}, _monitor, :process, _pid, _reason}, state, data),
    do: Closing.close_if_done(state, Exchange.fail(number, :unconfirmed, data))

  # What is native reaches no other node.
  def handle_event({:call, from}, {:trace, to}, _state, _data)
      when is_pid(to) and node(to) != node(),
      do: {:keep_state_and_data, {:reply, from, {:error, :another_node}}}

  def handle_event({:call, from}, {:trace, to}, _state, data),
    do: {:keep_state, Trace.set(to, data), {:reply, from, :ok}}

  # Its process has ended.
  def handle_event(:info, {:tap, _monitor, :process, _pid, _reason}, _state, data),
    do: {:keep_state, Trace.set(nil, data)}

  # The subscriptions of a consumer are its options.
  def handle_event({:call, from}, call, _state, %{handlers: handlers})
      when handlers != nil and elem(call, 0) in [:subscribe, :unsubscribe, :close],
      do: {:keep_state_and_data, {:reply, from, {:error, :consumer}}}

  def handle_event({:call, from}, {:subscribe, _, _, _}, :closing, _data),
    do: {:keep_state_and_data, {:reply, from, {:error, :disconnected}}}

  def handle_event({:call, from}, {:subscribe, subscription, pid, timeout}, state, data) do
    number = data.next_subscription

    subscription =
      Map.merge(subscription, %{number: number, feed: Feed.new(subscription), delays: nil})

    monitor = :erlang.monitor(:process, pid, tag: {:subscriber, number})
    entry = %{subscription: subscription, pid: pid, monitor: monitor, ending: false}
    entry = Map.put(entry, :target, Routing.target(pid))
    data = put_in(%{data | next_subscription: number + 1}.subscriptions[number], entry)
    data = Health.watch(data)

    if state == :connected and data.connection.verdict == nil,
      do:
        {:keep_state, Writing.subscribe(subscription, {:subscribe, from, number}, timeout, data)},
      else: {:keep_state, data, {:reply, from, {:ok, {self(), number}}}}
  end

  # Only the broker can forget it.
  def handle_event({:call, from}, {:unsubscribe, _subscription, %{delete: true}, _}, state, _data)
      when state != :connected,
      do: {:keep_state_and_data, {:reply, from, {:error, :disconnected}}}

  def handle_event({:call, from}, {:unsubscribe, {client, number}, how, timeout}, state, data) do
    case data.subscriptions do
      %{^number => %{ending: false, subscription: %{durable: nil}}}
      when client == self() and how.delete ->
        {:keep_state_and_data, {:reply, from, {:error, :not_durable}}}

      %{^number => %{ending: false} = entry} when client == self() ->
        entry = Map.put(entry, :unsubscribe, how)
        {:keep_state, Exchange.unsubscribe(entry, {:caller, from}, timeout, state, data)}

      _none ->
        {:keep_state_and_data, {:reply, from, {:error, :not_subscribed}}}
    end
  end

  def handle_event({:call, from}, {:unsubscribe, _none, _how, _timeout}, _state, _data),
    do: {:keep_state_and_data, {:reply, from, {:error, :not_subscribed}}}

  def handle_event(:info, {:unsubscribe_timeout, number}, _state, data),
    do: {:keep_state, Exchange.unsubscribe_timeout(number, data)}

  def handle_event({:call, from}, {:acknowledge, what, how}, state, data),
    do: {:keep_state, Exchange.acknowledge(what, how, from, state, data)}

  def handle_event(:info, {:resubscribe, number}, state, data),
    do: {:keep_state, Renewals.again(number, state, data)}

  # A subscriber has ended.
  def handle_event(:info, {{:subscriber, number}, _monitor, :process, _pid, _reason}, state, data) do
    case data.subscriptions do
      %{^number => %{ending: false} = entry} ->
        {:keep_state, Exchange.unsubscribe(entry, :nobody, state, data)}

      _none ->
        :keep_state_and_data
    end
  end

  def handle_event({:call, from}, :status, state, data),
    do: {:keep_state_and_data, {:reply, from, Events.status(state, data)}}

  def handle_event({:call, from}, :feeds, _state, data),
    do: {:keep_state_and_data, {:reply, from, Health.feeds(data)}}

  def handle_event({:call, from}, :health, state, data),
    do: {:keep_state_and_data, {:reply, from, Health.problems(state, data)}}

  def handle_event(:info, {:timeout, timer, :health}, state, %{health: %{timer: timer}} = data),
    do: {:keep_state, Health.look(state, data)}

  # Closing

  def handle_event(
        {:call, from},
        {:close, timeout},
        :connected,
        %{connection: %{verdict: nil}} = data
      ),
      do: Closing.close(from, timeout, data)

  def handle_event({:call, from}, {:stop, handling, farewell}, state, data),
    do: Closing.stop(from, handling, farewell, state, data)

  def handle_event(:info, :handling_timeout, :closing, data), do: Closing.handling_timeout(data)

  def handle_event({:call, from}, {:close, _timeout}, :closing, _data),
    do: {:keep_state_and_data, {:reply, from, {:error, :closing}}}

  def handle_event({:call, from}, {:close, _timeout}, _state, data),
    do: {:stop_and_reply, :normal, {:reply, from, :ok}, Closing.abandon(data)}

  def handle_event(:info, :close_timeout, :closing, %{closing: {from, _, _}} = data) do
    {:stop_and_reply, :normal, {:reply, from, {:error, :timeout}}, Closing.abandon(data)}
  end

  def handle_event({:call, from}, _stray, _state, _data),
    do: {:keep_state_and_data, {:reply, from, {:error, :unknown_call}}}

  # Reports about an earlier connection, exits of processes that have done their work, and strays.
  def handle_event(_type, _event, _state, _data), do: :keep_state_and_data

  @impl true
  def terminate(_reason, _state, data) do
    Handlers.kill(data.handlers)
    data = Exchange.fail_all(:unconfirmed, data)
    for {_number, call} <- data.waiting, do: Exchange.refuse(call.action, call.from, data)
    data = Publishing.stop(data)
    Connecting.stop_greeter(data)
    Closing.stop_and_wait(State.network(data))
  end

  @impl true
  # Events may hold bodies. What hides secrets from Elixir's reports does not hide them from Erlang's.
  def format_status(status) do
    status
    |> Map.replace_lazy(:queue, fn queue -> for {type, _event} <- queue, do: {type, :hidden} end)
    |> Map.replace(:log, [])
    |> Map.replace_lazy(:data, &Map.drop(&1, @hidden))
  end

  defp not_written(:timeout), do: :not_written
  defp not_written(:unescapable), do: :unescapable
  defp not_written(_connection_has_ended), do: :unconfirmed

  # When its end is decided, nothing more is written on a connection.
  defp when_connected(action, from, _wait, :connected, %{connection: %{verdict: nil}} = data),
    do: {:keep_state, Exchange.perform(action, from, data)}

  # While a consumer handles what has arrived before it stops, its callbacks may still publish.
  defp when_connected(
         action,
         from,
         _wait,
         :closing,
         %{connection: %{verdict: nil, session: %Session{}}} = data
       ) do
    if Handlers.running?(data.handlers),
      do: {:keep_state, Exchange.perform(action, from, data)},
      else: {:keep_state, Exchange.refuse(action, from, data)}
  end

  defp when_connected(action, from, {timeout, patient}, state, data)
       when state == :connecting or (patient and state != :closing) do
    number = data.next_waiting
    timer = Process.send_after(self(), {:waiting_timeout, number}, timeout)
    call = %{from: from, action: action, timer: timer, patient: patient}
    waiting = Map.put(data.waiting, number, call)
    {:keep_state, %{data | waiting: waiting, next_waiting: number + 1}}
  end

  defp when_connected(action, from, _wait, _state, data),
    do: {:keep_state, Exchange.refuse(action, from, data)}
end
