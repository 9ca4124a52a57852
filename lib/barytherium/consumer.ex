defmodule Barytherium.Consumer do
  @moduledoc """
  Handles the messages of a broker, and stays connected to it.

      defmodule MyApp.Orders do
        use Barytherium.Consumer

        @impl true
        def handle_message(frame, state) do
          MyApp.process(frame.body)
          {:ack, state}
        end
      end

      children = [
        {MyApp.Orders, url: "stomp://guest:guest@localhost", subscribe: "/queue/orders"}
      ]

  The callbacks run in a process of their own, the handler, which gets the messages straight from the receive loop. A slow
  callback slows down the broker's messages, and nothing else: a `Barytherium.Client` keeps the connection,
  and never waits for a callback. So a callback may also publish with a receipt through that client, which is
  in the `info` of `c:handle_connected/2`.

  Callbacks that wait for something else, a database for example, can run in parallel: `handlers: n` has n
  handlers for the messages of one connection, `concurrency: n` has n connections.

  ## Handling messages

  `c:handle_message/2` handles one message, or `c:handle_batch/2` all that have arrived together, at
  most 256; or with the option `:batch_size` so many, or those that have come within `:batch_timeout`. They
  return what is to be done with the message or the batch:

    * `{:ack, state}` - it is acknowledged;
    * `{:nack, state}` - it is refused. RabbitMQ delivers it again, ActiveMQ moves it to the dead-letter
      queue. `{:nack, headers, state}` has further headers for the NACK, in place of the option `:nack_headers`;
    * `{:noreply, state}` - neither. Another process does that later with `Barytherium.Client.ack/3`. It
      needs the client, which is in the `info` of `c:handle_connected/2`.

  `c:handle_batch/2` may also return `{results, state}` with a list of results, one for each message: `:ack`,
  `:nack`, `{:nack, headers}` or `:noreply`.

  With `ack: :auto` there is nothing to acknowledge. With `ack: :client` an acknowledgement covers all
  messages before it.

  If the callback raises, throws or exits, an error is logged, without the body, and the broker delivers the
  message again. RabbitMQ does so at once, because the message is refused. Other brokers discard a refused
  message, or move it to a dead-letter queue. There it stays unacknowledged, and comes again on the next
  connection; after 32 such messages, and with `ack: :client` or STOMP 1.0 after the first, the connection
  ends for that. Exceptions that follow each other cost a pause, of up to a second. See the option
  `:nack_headers`.

  `max_attempts: n` limits how often a message is given to a callback that raises. The attempts are made by the handler,
  after a wait that doubles (`:retry_delay`); then the message is refused, moved, or given to a function
  (`:on_exhausted`).

  With `on_exception: :restart`, or if another callback raises, the process ends, and with it the connection.
  Both start anew, with `c:init/1`, after a pause of 0.1 to 30 s, which doubles each time.

  Each message is handled at least once. It can come again, marked by the broker (`redelivered`), when the
  connection ends before its acknowledgement was written and read.

  ## Stopping

  When its supervisor stops a consumer, all its connections handle the messages that have arrived, acknowledge
  them, and disconnect, within the time of the option `:shutdown`. What has not been handled by then, the
  broker delivers again, unless the subscription has `ack: :auto`. A callback that is running at the end of
  that time is killed.

  ## Options

  Of `start_link/1`, `child_spec/1` and `use Barytherium.Consumer`:

    * `:name` - a name for the consumer, as for `Supervisor.start_link/2`.
  #{Barytherium.Consumer.Options.docs()}

  A subscription has these options:

  #{Barytherium.Consumer.Options.subscription_docs()}

  The other options are those of `Barytherium.Client.start_link/1`: `:url`, `:passcode` and so on.

  ## Telemetry

  See `Barytherium.Telemetry` for the events for each message.
  """

  alias Barytherium.Client
  alias Barytherium.Consumer.{DeadLetters, Options, Terminator, Worker}
  alias Barytherium.{Frame, Schema, Secret}

  @type state :: term()
  @type result :: {:ack | :nack | :noreply, state()} | {:nack, Frame.frame_headers(), state()}
  @type batch_result ::
          result() | {[:ack | :nack | {:nack, Frame.frame_headers()} | :noreply], state()}

  @doc "Returns the first state. `arg` is the option `:init_arg`. Without this callback, it is the state."
  @callback init(arg :: term()) :: {:ok, state()} | {:stop, reason :: term()}

  @doc "Handles a MESSAGE frame."
  @callback handle_message(Frame.t(), state()) :: result()

  @doc "Handles MESSAGE frames that have arrived together. Used instead of `c:handle_message/2`."
  @callback handle_batch([Frame.t(), ...], state()) :: batch_result()

  @doc "There is a connection. `info` is as in the events of `Barytherium.Client`."
  @callback handle_connected(info :: map(), state()) :: {:ok, state()}

  @doc """
  A connection has ended, or could not be made. The next attempt follows by itself.
  """
  @callback handle_disconnected(Barytherium.Error.t(), state()) :: {:ok, state()}

  @doc "The broker has sent an ERROR frame."
  @callback handle_error(Frame.t(), state()) :: {:ok, state()}

  @doc "Another message to this process."
  @callback handle_info(term(), state()) :: {:ok, state()}

  @doc "The process ends. Acknowledgements can still be written with `Barytherium.Client.ack/3`."
  @callback terminate(reason :: term(), state()) :: term()

  @optional_callbacks init: 1,
                      handle_message: 2,
                      handle_batch: 2,
                      handle_connected: 2,
                      handle_disconnected: 2,
                      handle_error: 2,
                      handle_info: 2,
                      terminate: 2

  defmacro __using__(defaults) do
    quote do
      @behaviour Barytherium.Consumer
      @before_compile Barytherium.Consumer

      @doc "Starts the consumer. `opts` are options of `Barytherium.Consumer`."
      def start_link(opts \\ []),
        do: Barytherium.Consumer.start_link(__MODULE__, opts, unquote(defaults))

      @doc "A child specification with the options of `Barytherium.Consumer`."
      def child_spec(opts \\ []),
        do: Barytherium.Consumer.child_spec(__MODULE__, opts, unquote(defaults))

      defoverridable start_link: 1, child_spec: 1
    end
  end

  @doc false
  defmacro __before_compile__(env) do
    unless Module.defines?(env.module, {:handle_message, 2}) or
             Module.defines?(env.module, {:handle_batch, 2}) do
      IO.warn(
        "#{inspect(env.module)} uses Barytherium.Consumer and has neither handle_message/2 nor handle_batch/2",
        env
      )
    end
  end

  @doc """
  Starts a consumer with the callbacks in `module`: a supervisor with a client for each connection.
  `opts` replace `defaults`. Raises `ArgumentError` for invalid options.
  """
  @spec start_link(module(), keyword(), keyword()) :: Supervisor.on_start()
  def start_link(module, opts, defaults \\ []) do
    settings = Options.settings!(module, merge!(defaults, opts), &DeadLetters.move/4)

    clients =
      for number <- 1..settings.concurrency do
        %{id: number, start: {__MODULE__, :start_client, [Secret.new(settings.client)]}}
      end

    terminator = %{
      id: :terminator,
      start: {Terminator, :start_link, [settings.shutdown]},
      shutdown: Terminator.shutdown(settings.shutdown)
    }

    children = clients ++ [terminator]

    # Three restarts in five seconds for each process, as a supervisor allows it for one.
    limit = [max_restarts: 3 * settings.concurrency]
    Supervisor.start_link(children, [strategy: :one_for_one] ++ limit ++ settings.name)
  end

  @doc "A child specification of a consumer with the callbacks in `module`."
  @spec child_spec(module(), keyword(), keyword()) :: Supervisor.child_spec()
  def child_spec(module, opts, defaults \\ []) do
    opts = merge!(defaults, opts)

    %{
      id: Keyword.get(opts, :name, module),
      start: {__MODULE__, :start_child, [module, Secret.new(opts)]},
      type: :supervisor
    }
  end

  # The message does not show them, because one may be a password.
  defp merge!(defaults, opts) do
    unless Keyword.keyword?(opts), do: raise(ArgumentError, "the options are not a keyword list")
    Keyword.merge(defaults, Schema.effective(opts))
  end

  @doc false
  # A supervisor's reports show the arguments.
  @spec start_child(module(), Secret.t(keyword())) :: Supervisor.on_start()
  def start_child(module, opts), do: start_link(module, Secret.reveal(opts))

  @doc false
  @spec start_client(Secret.t(map())) :: GenServer.on_start()
  def start_client(settings), do: Client.start_server(nil, Secret.reveal(settings))

  @doc """
  Replies to a message that asks for that (`Barytherium.Client.reply/4`), with the client of the consumer's connection. To
  be called in a callback of the consumer; raises `ArgumentError` elsewhere.

      def handle_message(frame, state) do
        Barytherium.Consumer.reply(frame, price(frame.body))
        {:ack, state}
      end

  It waits for the broker's receipt. The error `:refused` says that the requester has left. With `receipt: false` it is
  faster, but a reply that the broker refuses ends the connection: ActiveMQ refuses one whose requester has left.
  """
  @spec reply(Frame.t(), iodata(), [Client.publish_option()]) ::
          :ok | {:error, Barytherium.Error.t()}
  def reply(%Frame{} = request, body, opts \\ []),
    do: Client.reply(Worker.client!(), request, body, opts)

  @doc "The `Barytherium.Client` of each connection, for `Barytherium.Client.status/1` and `stats/1`."
  @spec clients(Supervisor.supervisor()) :: [pid()]
  def clients(consumer) do
    for {number, client, _type, _modules} when is_integer(number) and is_pid(client) <-
          Supervisor.which_children(consumer),
        do: client
  end
end
