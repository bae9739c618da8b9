/* The limit: what a client in C does over librabbitmq, with no work in between.

       limit consume URL QUEUE MESSAGES RESULT ACK_EVERY
       limit publish URL QUEUE MESSAGES RESULT WINDOW BODY [EXCHANGE KEY]

   consume: prefetch 200, an ack for each message, or one cumulative ack for every ACK_EVERY of
   them. publish: persistent, with confirms, of which at most WINDOW are outstanding; to QUEUE by
   the default exchange or, with an EXCHANGE and a KEY, as evworker publishes: mandatory, and with
   all the properties that it sets. The default exchange is "" there.

   The result is the JSON that the Python peers write, see peers/measured.py. */

#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define CHANNEL 1
#define PREFETCH 200

static double began_s, cpu_before_s;

static void refuse(const char *what) {
    fprintf(stderr, "limit: %s\n", what);
    exit(1);
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static double cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
           (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static double pss_mib(void) {
    char line[256];
    long kib = 0;
    FILE *rollup = fopen("/proc/self/smaps_rollup", "r");
    if (!rollup) return 0;
    while (fgets(line, sizeof line, rollup))
        if (sscanf(line, "Pss: %ld", &kib) == 1) break;
    fclose(rollup);
    return kib / 1024.0;
}

static void begin(void) {
    cpu_before_s = cpu_s();
    began_s = now_s();
}

static void end(long messages, const char *result) {
    double seconds = now_s() - began_s, cpu = cpu_s() - cpu_before_s;
    char unfinished[4096];
    snprintf(unfinished, sizeof unfinished, "%s.unfinished", result);
    FILE *file = fopen(unfinished, "w");
    if (!file) refuse("can't write the result");
    fprintf(file,
            "{\"messages\": %ld, \"seconds\": %.6f, \"cpu_s\": %.6f, \"pss_mib\": %.2f, "
            "\"processes\": 1}",
            messages, seconds, cpu, pss_mib());
    fclose(file);
    if (rename(unfinished, result)) refuse("can't write the result");
}

static amqp_connection_state_t open_channel(char *url) {
    struct amqp_connection_info to;
    amqp_default_connection_info(&to);
    if (amqp_parse_url(url, &to)) refuse("can't read the broker's URL");
    if (!*to.vhost) to.vhost = "/"; /* what a URL that ends in a slash means elsewhere */
    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    if (amqp_socket_open(socket, to.host, to.port)) refuse("the broker does not answer");
    amqp_rpc_reply_t reply = amqp_login(connection, to.vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN,
                                        to.user, to.password);
    if (reply.reply_type != AMQP_RESPONSE_NORMAL) refuse("the broker refuses the login");
    if (!amqp_channel_open(connection, CHANNEL)) refuse("can't open a channel");
    return connection;
}

static void consume(amqp_connection_state_t connection, const char *queue, long messages,
                    const char *result, long ack_every) {
    amqp_basic_qos(connection, CHANNEL, 0, PREFETCH, 0);
    amqp_basic_consume(connection, CHANNEL, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 0, 0,
                       amqp_empty_table);
    for (long handled = 1; handled <= messages; handled++) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        if (amqp_consume_message(connection, &envelope, NULL, 0).reply_type != AMQP_RESPONSE_NORMAL)
            refuse("the connection was lost while consuming");
        if (handled == 1) begin();
        if (handled % ack_every == 0 || handled == messages)
            amqp_basic_ack(connection, CHANNEL, envelope.delivery_tag, ack_every > 1);
        amqp_destroy_envelope(&envelope);
    }
    end(messages, result);
    pause(); /* until it is ended: a channel that closes forgets acks that its queue has not taken */
}

/* Waits for one frame of confirms, and returns how many messages are confirmed by now. */
static long confirmed_after(amqp_connection_state_t connection, long confirmed) {
    amqp_frame_t frame;
    amqp_maybe_release_buffers(connection);
    if (amqp_simple_wait_frame(connection, &frame) || frame.frame_type != AMQP_FRAME_METHOD ||
        frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
        refuse("the broker did not confirm");
    amqp_basic_ack_t *ack = frame.payload.method.decoded;
    return ack->multiple ? (long)ack->delivery_tag : confirmed + 1;
}

static amqp_basic_properties_t plain(void) {
    return (amqp_basic_properties_t){
        ._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG,
        .content_type = amqp_cstring_bytes("application/json"),
        .delivery_mode = 2,
    };
}

static amqp_basic_properties_t as_evworker(const char *topic) {
    const char *id = "01a20af7-0e44-721f-bef8-26d1a2d63168";
    return (amqp_basic_properties_t){
        ._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_HEADERS_FLAG |
                  AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG |
                  AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_TYPE_FLAG |
                  AMQP_BASIC_APP_ID_FLAG,
        .content_type = amqp_cstring_bytes("application/cloudevents+json"),
        .delivery_mode = 2,
        .correlation_id = amqp_cstring_bytes(id),
        .message_id = amqp_cstring_bytes(id),
        .timestamp = time(NULL),
        .type = amqp_cstring_bytes(topic),
        .app_id = amqp_cstring_bytes("bench"),
    };
}

static void publish(amqp_connection_state_t connection, const char *exchange, const char *key,
                    int like_evworker, long messages, const char *result, long window,
                    const char *body) {
    amqp_basic_properties_t properties = like_evworker ? as_evworker(key) : plain();
    amqp_confirm_select(connection, CHANNEL);
    long confirmed = 0;
    begin();
    for (long sent = 1; sent <= messages; sent++) {
        if (amqp_basic_publish(connection, CHANNEL, amqp_cstring_bytes(exchange),
                               amqp_cstring_bytes(key), like_evworker, 0, &properties,
                               amqp_cstring_bytes(body)))
            refuse("the connection was lost while publishing");
        while (sent - confirmed >= window) confirmed = confirmed_after(connection, confirmed);
    }
    while (confirmed < messages) confirmed = confirmed_after(connection, confirmed);
    end(messages, result);
}

int main(int count, char **arguments) {
    if (count < 7) refuse("see the top of limit.c for its arguments");
    char *queue = arguments[3], *result = arguments[5];
    long messages = atol(arguments[4]), number = atol(arguments[6]);
    amqp_connection_state_t connection = open_channel(arguments[2]);
    if (strcmp(arguments[1], "consume") == 0)
        consume(connection, queue, messages, result, number);
    else if (count == 8)
        publish(connection, "", queue, 0, messages, result, number, arguments[7]);
    else if (count == 10)
        publish(connection, arguments[8], arguments[9], 1, messages, result, number, arguments[7]);
    else
        refuse("publish needs a body");
    amqp_channel_close(connection, CHANNEL, AMQP_REPLY_SUCCESS);
    amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(connection);
    return 0;
}
