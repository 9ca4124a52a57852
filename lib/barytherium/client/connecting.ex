defmodule Barytherium.Client.Connecting do
  @moduledoc false
  # How a client connects, and what follows when a connection has ended. The functions run in the client,
  # and take its data.

  alias Barytherium.Client.{
    Backoff,
    Connection,
    Events,
    Exchange,
    Handlers,
    Options,
    Publishing,
    Renewals,
    Session,
    State,
    Trace,
    Transactions
  }

  alias Barytherium.{Frame, Native, Network}
  alias Barytherium.Network.Sender

  @doc "Begins with the first broker, or a random one."
  @spec new_round(State.t()) :: State.t()
  def new_round(%{settings: settings} = data) do
    round = if settings.shuffle, do: Enum.shuffle(settings.endpoints), else: settings.endpoints
    %{data | round: round}
  end

  @doc """
  Fetches the credentials, and headers that come from functions, in a process of its own, because that may take long or
  raise. The client gets `{:greeter, pid, :ready | :failed, headers}`, with those of SUBSCRIBE. The process keeps the
  others until `greet/2`.
  """
  @spec start_greeter(State.t()) :: pid()
  def start_greeter(%{settings: settings, endpoint: endpoint} = data) do
    client = self()

    functions =
      for {number, %{ending: false, subscription: %{headers: headers} = subscription}} <-
            data.subscriptions,
          not is_list(headers),
          do: {number, headers, subscription}

    spawn(fn -> fetch(client, settings, endpoint, functions) end)
  end

  defp fetch(client, settings, endpoint, functions) do
    # It ends with the client.
    monitor = Process.monitor(client)
    headers = Options.connect_headers(settings, endpoint)
    {frame, _cost} = Frame.prepare(%Frame{command: :connect, headers: headers})
    upgrade = Options.upgrade_headers(settings, endpoint)

    called =
      for {number, function, subscription} <- functions,
          do: {number, called(function, subscription)}

    :gen_statem.cast(client, {:greeter, self(), :ready, called})
    keep(frame, upgrade, monitor)
  catch
    kind, reason ->
      Events.no_credentials(kind, reason)
      :gen_statem.cast(client, {:greeter, self(), :failed, []})
  end

  # The other subscriptions need not wait for this one.
  defp called(function, %{called: last} = subscription) do
    Options.headers(:subscribe, function)
  catch
    kind, reason ->
      Events.no_headers(kind, reason, subscription.destination)
      last
  end

  defp called(function, _first), do: Options.headers(:subscribe, function)

  defp keep(frame, upgrade, monitor) do
    receive do
      {:upgrade, pid, reference} ->
        send(pid, {reference, upgrade})
        keep(frame, upgrade, monitor)

      {:greet, sender} ->
        Sender.write(sender, [frame])

      {:DOWN, ^monitor, :process, _client, _reason} ->
        :ok
    end
  end

  # Runs in the process that connects, as long as that may take. The client ends the greeter, and that process.
  defp upgrade_headers(greeter) do
    reference = make_ref()
    send(greeter, {:upgrade, self(), reference})
    receive do: ({^reference, headers} -> headers)
  end

  @doc "Writes CONNECT."
  @spec greet(pid(), State.t()) :: term()
  def greet(sender, %{connection: %{greeter: greeter}}), do: send(greeter, {:greet, sender})

  @spec stop_greeter(State.t()) :: :ok | true
  def stop_greeter(%{connection: %{greeter: greeter}}) when greeter != nil,
    do: Process.exit(greeter, :kill)

  def stop_greeter(_data), do: :ok

  # The credentials come first: a function that fetches them may take longer than a broker waits for CONNECT.
  @doc "Begins an attempt at the next broker of the round."
  @spec connect(State.t()) :: :gen_statem.event_handler_result(atom())
  def connect(%{round: [endpoint | round]} = data) do
    data = %{
      data
      | endpoint: endpoint,
        round: round,
        attempts: data.attempts + 1
    }

    greeter = start_greeter(data)
    connection = %Connection{greeter: greeter, started: System.monotonic_time()}
    timeout = {{:timeout, :credentials}, data.settings.credentials_timeout, greeter}
    {:next_state, :connecting, %{data | connection: connection}, timeout}
  end

  @doc "Headers of subscriptions, for the connection that is made."
  @spec with_headers([{pos_integer(), Frame.frame_headers()}], State.t()) :: State.t()
  def with_headers(called, data) do
    for {number, headers} <- called, is_map_key(data.subscriptions, number), reduce: data do
      data -> put_in(data.subscriptions[number].subscription[:called], headers)
    end
  end

  @doc "The credentials are there, or cannot be had."
  @spec greeted(:ready | :failed, State.t()) :: :gen_statem.event_handler_result(atom())
  def greeted(:failed, data), do: ended(:credentials, data)

  def greeted(
        :ready,
        %{settings: settings, endpoint: %{host: host, port: port} = endpoint} = data
      ) do
    routes = Native.new_routes()
    greeter = data.connection.greeter
    opts = Options.network(settings, endpoint, fn -> upgrade_headers(greeter) end)
    {:ok, network} = Network.start_link(self(), host, port, opts, routes)
    connection = %{data.connection | network: network, routes: routes}
    data = Trace.apply_to_connection(%{data | connection: connection})
    {:keep_state, data, {{:timeout, :credentials}, :cancel}}
  end

  # The network process ends the connection otherwise, and says why.
  @doc "Whether the server has answered with a version that was offered."
  @spec offered?(Frame.t(), State.t()) :: boolean()
  def offered?(frame, data),
    do: Frame.announced_version(frame) in data.settings.versions

  @doc "The broker has accepted the login."
  @spec connected(Frame.t(), State.t()) :: :gen_statem.event_handler_result(atom())
  def connected(frame, data) do
    {ending, subscriptions} = data.subscriptions |> Map.values() |> Enum.split_with(& &1.ending)
    data = Enum.reduce(ending, data, &Exchange.forget(&1.subscription.number, &2))
    subscriptions = Enum.sort_by(subscriptions, & &1.subscription.number)
    waiting = Enum.sort(data.waiting)

    %{sender: sender, routes: routes} = connection = data.connection
    session = Session.new(sender, routes, frame)
    session = %{session | shared?: Handlers.shared?(data.handlers)}
    connection = %{connection | session: session, since: System.monotonic_time()}

    data = %{
      data
      | connection: connection,
        connections: data.connections + 1,
        waiting: %{}
    }

    # With this the handler knows all of them before the first message can come.
    Handlers.session(
      data.handlers,
      data.connection.session,
      Enum.map(subscriptions, & &1.subscription)
    )

    Events.connected(frame, data)

    data = Renewals.write(subscriptions, data)
    data = Enum.reduce(waiting, data, &stop_waiting/2)
    {:next_state, :connected, Publishing.connected(data)}
  end

  defp stop_waiting({_number, %{from: {pid, _tag} = from, action: action, timer: timer}}, data) do
    Process.cancel_timer(timer)
    # Nobody would hear of it.
    if node(pid) == node() and not Process.alive?(pid),
      do: data,
      else: Exchange.perform(action, from, data)
  end

  @doc "A connection, or an attempt, has ended."
  @spec ended(atom(), State.t()) :: :gen_statem.event_handler_result(atom())
  def ended(reason, data) do
    reason = data.connection.verdict || reason
    lasted = data.connection.since && System.monotonic_time() - data.connection.since
    # A broker that does not even take the subscriptions is as good as one that cannot be reached.
    worked? = lasted != nil and not Renewals.any?(data)
    attempts = if worked?, do: 0, else: data.attempts
    data = release(%{data | reason: reason, attempts: attempts})

    if lasted,
      do: Events.disconnected(reason, lasted, data),
      else: Events.connection_failure(reason, data)

    go_on(if(worked?, do: lasted), data)
  end

  defp go_on(_lasted, %{handlers: %{pid: nil}} = data), do: wait(reset(data))

  # The next broker is tried at once if this one could not be reached.
  defp go_on(nil, %{round: [_ | _]} = data), do: connect(reset(data))

  defp go_on(nil, %{attempts: attempts, settings: %{max_attempts: most}} = data)
       when attempts >= most,
       do: {:stop, {:shutdown, {:max_attempts, Events.brief(data.reason)}}, reset(data)}

  defp go_on(lasted, data) do
    lived = System.convert_time_unit(lasted || 0, :native, :millisecond)
    {wait, backoff} = data.backoff |> Backoff.lived(lived) |> Backoff.next()
    disconnected(wait, %{reset(data) | backoff: backoff})
  end

  defp disconnected(wait, data) do
    {waiting, impatient} = Enum.split_with(data.waiting, fn {_number, call} -> call.patient end)
    data = Publishing.no_connection(refuse_waiting(%{data | waiting: Map.new(impatient)}))

    {:next_state, :disconnected, %{data | waiting: Map.new(waiting)},
     {:state_timeout, wait, :connect}}
  end

  @doc "Answers those who wait for a connection: there will be none."
  @spec refuse_waiting(State.t()) :: State.t()
  def refuse_waiting(data) do
    for {_number, %{from: from, action: action, timer: timer}} <- data.waiting do
      Process.cancel_timer(timer)
      Exchange.refuse(action, from, data)
    end

    %{data | waiting: %{}}
  end

  @doc "Waits until the handler is started again."
  @spec wait(State.t()) :: :gen_statem.event_handler_result(atom())
  def wait(data) do
    {wait, handlers} = Handlers.pause(data.handlers)
    disconnected(wait, %{data | handlers: handlers})
  end

  @doc "Gives up everything that belongs to the connection."
  @spec release(State.t()) :: State.t()
  def release(data) do
    stop_greeter(data)

    # It ends; if it is connected, after what was written and a DISCONNECT.
    network = State.network(data)
    if network, do: Process.exit(network, :shutdown)
    data = if network, do: put_in(data.former[network], true), else: data
    data = if data.connection, do: Transactions.forget_all(data), else: data
    data = Publishing.suspect_if_stuck(data)
    Publishing.disconnected(Exchange.fail_all(:unconfirmed, data))
  end

  @doc "Forgets the connection."
  @spec reset(State.t()) :: State.t()
  def reset(data), do: %{data | connection: nil}
end
